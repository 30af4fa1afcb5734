// The history of drills, where the endpoint has one.

import { el, list, say, show } from './dom.js';
import { get, of, Refused } from './api.js';
import { clock, day, duration } from './units.js';

const words = {
  running: 'running', held: 'all held', failed: 'FAILED', refused: 'refused', skipped: 'skipped', aborted: 'given up', interrupted: 'interrupted',
};

export class Drills {
  constructor() {
    this.body = el('tbody');
    this.all = null; // null: not offered, or not heard of yet
    this.root = el('section', { class: 'panel', 'aria-labelledby': 'drills', hidden: true }, el('h2', { id: 'drills' }, 'Drills'),
      this.none = el('p', { class: 'hint' }),
      this.scroll = el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-labelledby': 'drills' }, el('table', {},
        el('caption', {}, 'Drills, the newest first'), el('thead', {}, el('tr', {}, ...['Began', 'Guest', 'Drill', 'Outcome', 'Outage', 'Run by', 'Why'].map((h) => el('th', { scope: 'col' }, h)))), this.body)));
  }

  // load asks for the history: each host has that of the drills that it ran. A 404
  // is an endpoint without one.
  async load(model) {
    const others = model.peers === 'yes' ? model.voters().map((v) => v.host).filter((h) => h !== model.self) : [];
    const paths = ['/api/v1/drills', ...others.map((h) => of(h, '/api/v1/drills'))];
    const lists = await Promise.all(paths.map(async (path) => {
      try {
        return (await get(path)).drills ?? [];
      } catch (e) {
        return e instanceof Refused && e.status === 404 ? null : undefined;
      }
    }));
    if (lists.every((l) => l === null || l === undefined)) {
      this.all = lists[0] === null ? null : this.all;
      return;
    }
    this.all = lists.flatMap((l) => l ?? []);
  }

  show(guest) {
    show(this.root, this.all !== null);
    const some = (this.all ?? []).filter((d) => guest === '' || d.guest === guest)
      .sort((a, b) => Date.parse(b.began) - Date.parse(a.began)).slice(0, 20);
    say(this.none, some.length === 0 ? 'No drill was run yet: understudy drill run.' : '');
    show(this.scroll, some.length > 0);
    list(this.body, some, (d) => `${d.id} ${d.state} ${d.phase}`, make);
  }
}

function make(d) {
  const began = new Date(d.began);
  const what = [d.kind, d.fault].filter(Boolean).join(', ');
  const outcome = words[d.state] ?? d.state;
  return el('tr', { class: d.state === 'held' ? 'good' : d.state === 'failed' ? 'bad' : 'plain' },
    el('th', { scope: 'row' }, `${day(began)} ${clock(began)}`),
    ...[d.guest, d.name ? `${d.name}: ${what}` : what, d.phase ? `${outcome}: ${d.phase}` : outcome, d.outage_ns === undefined ? 'unknown' : duration(d.outage_ns), d.host, d.why ?? '']
      .map((t) => el('td', {}, String(t ?? 'unknown'))));
}

// The history of drills, where the endpoint has one.

import { el, list, say, show } from './dom.js';
import { get, of, Refused } from './api.js';
import { address, states, title } from './report.js';
import { clock, day, duration } from './units.js';

function all(list) {
  return Array.isArray(list) ? list.filter((d) => d && typeof d === 'object') : [];
}

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
        return all((await get(path)).drills);
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

  running() {
    return (this.all ?? []).some((d) => d.state === 'running');
  }

  show(guest) {
    show(this.root, this.all !== null);
    const some = (this.all ?? []).filter((d) => guest === '' || d.guest === guest)
      .sort((a, b) => Date.parse(b.began) - Date.parse(a.began)).slice(0, 20);
    say(this.none, some.length === 0 ? 'No drill was run yet. A bubble harms nobody: it starts the copy on the backup in isolation, and throws it away.' : '');
    show(this.scroll, some.length > 0);
    list(this.body, some, (d) => `${d.id} ${d.state} ${d.phase}`, make);
  }
}

function make(d) {
  const began = new Date(d.began);
  const [tone, word] = states[d.state] ?? ['unknown', String(d.state)];
  return el('tr', { class: `row ${tone}` },
    el('th', { scope: 'row' }, `${day(began)} ${clock(began)}`),
    el('td', {}, String(d.guest ?? 'unknown')),
    el('td', {}, el('a', { href: address(String(d.host), String(d.id)) }, title(d), el('span', { class: 'visually-hidden' }, `, ${d.guest}, ${day(began)} ${clock(began)}: report`))),
    ...[d.state === 'running' && d.phase ? `${word}: ${d.phase}` : word, d.outage_ns === undefined ? 'not measured' : duration(d.outage_ns), d.host, d.why ?? '']
      .map((t, i) => el('td', { class: i === 0 ? 'outcome' : false }, String(t ?? 'unknown'))));
}

// The history of drills, where the endpoint has one.

import { el, list, say, show } from './dom.js';
import { get, Refused } from './api.js';
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
        el('thead', {}, el('tr', {}, ...['Began', 'Guest', 'Kind', 'Outcome', 'Outage', 'Run by', 'Why'].map((h) => el('th', { scope: 'col' }, h)))), this.body)));
  }

  // load asks for the history. A 404 is an endpoint without one.
  async load() {
    try {
      const answer = await get('/api/v1/drills');
      this.all = (Array.isArray(answer) ? answer : answer.drills) ?? [];
    } catch (e) {
      if (e instanceof Refused) {
        this.all = null;
      }
    }
  }

  show(guest) {
    show(this.root, this.all !== null);
    const some = (this.all ?? []).filter((d) => guest === '' || (d.spec?.guest ?? d.guest) === guest)
      .sort((a, b) => Date.parse(b.began) - Date.parse(a.began)).slice(0, 20);
    say(this.none, some.length === 0 ? 'No drill was run yet: understudy drill run.' : '');
    show(this.scroll, some.length > 0);
    list(this.body, some, (d) => `${d.id} ${d.state}`, make);
  }
}

function make(d) {
  const spec = d.spec ?? d;
  const began = new Date(d.began);
  const outage = d.rto?.outage?.took_ns ?? d.rto?.first_output?.took_ns ?? d.outage_ns;
  return el('tr', { class: d.state === 'held' ? 'good' : d.state === 'failed' ? 'bad' : 'plain' },
    el('th', { scope: 'row' }, `${day(began)} ${clock(began)}`),
    ...[spec.guest, [spec.kind, spec.fault].filter(Boolean).join(', '), words[d.state] ?? d.state, outage === undefined ? '–' : duration(outage), d.host, d.why ?? '']
      .map((t) => el('td', {}, String(t ?? 'unknown'))));
}

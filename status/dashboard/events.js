// The record of events as a list, the newest first.

import { el, list, say, show } from './dom.js';
import { clock, day } from './units.js';

const most = 100;

const tones = {
  protected: 'good', 'disk-well': 'good', 'problem-over': 'good', activated: 'good', 'first-output': 'good', 'lease-renewed-again': 'good',
  unprotected: 'bad', mismatch: 'bad', problem: 'warn', 'lease-lost': 'bad', 'disk-trouble': 'bad', 'image-given-up': 'warn', returned: 'warn',
  'takeover-asked': 'warn', 'takeover-refused': 'warn', missed: 'warn', 'host-down': 'warn',
};

export class Events {
  constructor() {
    this.items = el('ol', { class: 'events' });
    this.hint = el('p', { class: 'hint' });
    this.root = el('section', { class: 'panel', 'aria-labelledby': 'events' }, el('h2', { id: 'events' }, 'What happened'), this.hint,
      el('div', { class: 'scroll tallscroll', tabindex: '0', role: 'region', 'aria-labelledby': 'events' }, this.items));
  }

  // show lists the events of a guest and of the hosts; of all guests for ''.
  show(model, guest) {
    const some = model.events.filter((e) => guest === '' || !e.guest || e.guest === guest).slice(0, most);
    const only = model.peers === 'yes' ? '' : ` These are the events of ${model.self} alone.`;
    say(this.hint, (model.eventsOffered ? some.length === 0 ? 'Nothing is recorded yet.' : 'The newest first, in your local time.' : 'Events are not recorded on this host.') + only);
    show(this.items.parentElement, some.length > 0);
    list(this.items, some, (e) => e.key, make);
  }
}

function make(e) {
  const at = new Date(e.at);
  return el('li', { class: `event ${tones[e.kind] ?? 'plain'}` },
    el('time', { datetime: e.time, title: `${day(at)} ${clock(at)}` }, clock(at)),
    el('span', { class: 'kind' }, String(e.kind)),
    el('span', { class: 'where' }, e.guest ? `${e.host} · ${e.guest}` : String(e.host)),
    el('span', { class: 'text' }, String(e.text ?? '')));
}

// The plots of one guest.

import { el, say, show } from './dom.js';
import { Plot } from './plot.js';
import { rings } from './samples.js';
import { bytes, duration, rate } from './units.js';

export class Plots {
  constructor() {
    this.all = [
      new Plot({
        title: 'Pause', note: 'how long the guest stands still at a checkpoint', write: duration, base: 1000,
        lines: [{ key: 'pause_p99_ns', name: '99th percentile', style: 'b' }, { key: 'pause_ns', name: 'mean', style: 'a' }],
      }),
      new Plot({
        title: 'Commit lag', note: 'from the checkpoint until the backup has it', write: duration, base: 1000,
        lines: [{ key: 'lag_p99_ns', name: '99th percentile', style: 'b' }, { key: 'lag_ns', name: 'mean', style: 'a' }],
      }),
      new Plot({
        title: 'Epoch length', note: 'from one checkpoint to the next', write: duration, base: 1000,
        lines: [{ key: 'epoch_ns', name: 'mean', style: 'a' }],
      }),
      new Plot({
        title: 'Held output', note: 'what waits for its epoch to be committed', write: bytes, base: 1024,
        lines: [{ key: 'held_write_bytes', name: 'disk writes', style: 'b' }, { key: 'held_bytes', name: 'network', style: 'a' }],
      }),
      new Plot({
        title: 'Dirty memory: sent and left out', note: 'what the guest wrote, and why most of it need not travel', write: rate, base: 1024, stacked: true,
        lines: [
          { key: 'sent_bytes_per_second', name: 'sent', style: 'a' },
          { key: 'packed_bytes_per_second', name: 'left out: differences and compression', style: 'b' },
          { key: 'unchanged_bytes_per_second', name: 'left out: not changed', style: 'c' },
          { key: 'zero_bytes_per_second', name: 'left out: zero', style: 'd' },
          { key: 'equal_bytes_per_second', name: 'left out: equal to another page', style: 'e' },
          { key: 'on_disk_bytes_per_second', name: 'left out: on the disk', style: 'f' },
        ],
      }),
    ];
    // The rings that can be looked at; changed is called when it is another one.
    this.ring = 'fine';
    this.changed = () => {};
    this.note = el('p', { class: 'hint' });
    this.root = el('section', { 'aria-labelledby': 'plots' },
      el('div', { class: 'plotshead' }, el('h2', { id: 'plots' }, 'Over time'),
        el('fieldset', { class: 'choice' }, el('legend', { class: 'visually-hidden' }, 'How far back'),
          ...[['fine', '15 minutes'], ['coarse', '6 hours']].map(([ring, text]) => el('label', {},
            el('input', { type: 'radio', name: 'ring', value: ring, checked: ring === this.ring, onchange: () => { this.ring = ring; this.changed(); } }), el('span', {}, text))))),
      this.note,
      el('div', { class: 'plots' }, ...this.all.map((p) => p.root)));
  }

  // show draws samples (samples.js) as of a time; offered tells whether any host
  // that is heard keeps some.
  show(samples, now, offered) {
    say(this.note, offered ? '' : 'No host that is heard from here keeps samples of this guest.');
    show(this.note, !offered);
    for (const p of this.all) {
      p.show(samples, now, rings[this.ring]);
    }
  }
}

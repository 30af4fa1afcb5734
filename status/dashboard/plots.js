// The plots of one guest.

import { el } from './dom.js';
import { Plot } from './plot.js';
import { bytes, duration, rate } from './units.js';

export class Plots {
  constructor() {
    this.all = [
      new Plot({
        title: 'Pause', note: 'how long the guest stands still at a checkpoint', write: duration, base: 1000,
        lines: [{ key: 'pauseP99', name: '99th percentile', style: 'b' }, { key: 'pause', name: 'mean', style: 'a' }],
      }),
      new Plot({
        title: 'Commit lag', note: 'from the checkpoint until the backup has it', write: duration, base: 1000,
        lines: [{ key: 'lagP99', name: '99th percentile', style: 'b' }, { key: 'lag', name: 'mean', style: 'a' }],
      }),
      new Plot({
        title: 'Epoch length', note: 'from one checkpoint to the next', write: duration, base: 1000,
        lines: [{ key: 'epoch', name: 'mean', style: 'a' }],
      }),
      new Plot({
        title: 'Held output', note: 'what waits for its epoch to be committed', write: bytes, base: 1024,
        lines: [{ key: 'heldWrites', name: 'disk writes', style: 'b' }, { key: 'heldBytes', name: 'network', style: 'a' }],
      }),
      new Plot({
        title: 'Dirty memory: sent and left out', note: 'what the guest wrote, and why most of it need not travel', write: rate, base: 1024, stacked: true,
        lines: [
          { key: 'sent', name: 'sent', style: 'a' },
          { key: 'packed', name: 'left out: differences and compression', style: 'b' },
          { key: 'same', name: 'left out: not changed', style: 'c' },
          { key: 'zero', name: 'left out: zero', style: 'd' },
          { key: 'equal', name: 'left out: equal to another page', style: 'e' },
          { key: 'disk', name: 'left out: on the disk', style: 'f' },
        ],
      }),
    ];
    this.root = el('section', { 'aria-labelledby': 'plots' }, el('h2', { id: 'plots' }, 'The last ten minutes'),
      el('div', { class: 'plots' }, ...this.all.map((p) => p.root)));
  }

  show(samples, now) {
    for (const p of this.all) {
      p.show(samples, now);
    }
  }
}

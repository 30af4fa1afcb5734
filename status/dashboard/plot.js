// One plot over time: lines, or areas upon each other, on a ground that is shaded
// where the guest was not protected; a crosshair for the pointer and the arrow keys;
// the same as a table. Its colours and hatches are in plot.css.

import { el, list, say, set, show, svg } from './dom.js';
import { area, linear, nearest, path, stack, steps, ticks } from './scale.js';
import { quiet } from './model.js';
import { bands, rings, rows, shown } from './samples.js';
import { clock, duration } from './units.js';

const height = 150;
const margin = { left: 64, right: 8, top: 8, bottom: 22 };

// Plot shows, of samples, the lines {key, name, style} with write(value) as their
// values' words. style is a class of plot.css: a to f.
export class Plot {
  constructor({ title, note, lines, write, base, stacked }) {
    Object.assign(this, { title, lines, write, base, stacked, samples: [], now: 0, at: null, width: 400, ring: rings.fine, span: rings.fine.span });
    this.legend = el('ul', { class: 'legend' });
    this.picture = svg('svg', { class: 'plot', height, 'aria-hidden': 'true', focusable: 'false' });
    this.slider = el('div', {
      class: 'plotarea', tabindex: '0', role: 'slider', 'aria-label': `${title}: values over time, with the arrow keys`,
      'aria-orientation': 'horizontal', 'aria-valuemin': String(-rings.fine.span / 1000), 'aria-valuemax': '0', 'aria-valuenow': '0', 'aria-valuetext': 'nothing yet',
      onpointermove: (e) => this.point(e), onpointerdown: (e) => this.point(e),
      onpointerleave: () => this.aim(null), onblur: () => this.aim(null), onkeydown: (e) => this.key(e),
    }, this.picture);
    this.empty = el('p', { class: 'hint', hidden: true }, 'Nothing is known of this time.');
    this.body = el('tbody');
    this.table = el('details', { class: 'astable', ontoggle: () => this.tabulate() },
      el('summary', {}, 'As a table', el('span', { class: 'visually-hidden' }, `: ${title}`)),
      el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${title} as a table` },
        el('table', {}, this.caption = el('caption'), this.head(), this.body)));
    this.root = el('figure', { class: 'panel' },
      el('figcaption', {}, el('h3', {}, title), note ? el('p', { class: 'hint' }, note) : null), this.legend, this.slider, this.empty, this.table);
    this.build();
    new ResizeObserver(([e]) => {
      this.width = Math.max(200, Math.floor(e.contentRect.width));
      this.draw();
    }).observe(this.slider);
  }

  head() {
    return el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'From'),
      ...this.lines.map((l) => el('th', { scope: 'col' }, l.name))));
  }

  build() {
    this.values = new Map();
    for (const l of [...this.lines].reverse()) {
      const value = el('span', { class: 'value' });
      this.values.set(l.key, value);
      this.legend.append(el('li', {}, svg('svg', { class: `swatch ${l.style}`, viewBox: '0 0 24 12', 'aria-hidden': 'true' },
        this.stacked ? svg('rect', { class: 'area', width: 24, height: 12 }) : svg('path', { class: 'line', d: 'M1 6h22' })), `${l.name} `, value));
    }
    this.grid = svg('g', { class: 'grid' });
    this.unprotected = svg('path', { class: 'unprotected' });
    this.shade = el('li', { class: 'shade' }, svg('svg', { class: 'swatch', viewBox: '0 0 24 12', 'aria-hidden': 'true' }, svg('path', { class: 'unprotected', d: 'M0 0h24v12h-24z' })), 'not protected');
    this.legend.append(this.shade);
    this.shapes = this.lines.map((l) => svg('path', { class: `${this.stacked ? 'area' : 'line'} ${l.style}` }));
    this.cross = svg('path', { class: 'cross' });
    this.when = svg('text', { class: 'when', y: height - 6 });
    this.picture.append(this.unprotected, this.grid, ...this.shapes, this.cross, this.when);
  }

  // show draws samples of a ring (samples.js) as of a time.
  show(samples, now, ring) {
    this.samples = samples;
    this.now = now;
    this.ring = ring;
    set(this.slider, 'aria-valuemin', -ring.span / 1000);
    this.draw();
    this.tabulate();
  }

  draw() {
    const { samples, width } = this;
    const drawn = samples.some((s) => this.lines.some((l) => s[l.key] !== null));
    show(this.empty, !drawn);
    set(this.picture, 'viewBox', `0 0 ${width} ${height}`);
    set(this.picture, 'width', width);
    const stacked = this.stacked ? stack(samples, this.lines.map((l) => l.key)) : null;
    const top = stacked ? samples.map((_, i) => stacked.get(this.lines.at(-1).key)[i][1] ?? 0) : samples.flatMap((s) => this.lines.map((l) => s[l.key] ?? 0));
    const axis = steps(top.reduce((a, b) => Math.max(a, b), 0), this.base);
    this.span = shown(samples, this.now, this.ring.span);
    this.x = linear(this.now - this.span, this.now, margin.left, width - margin.right);
    this.y = linear(0, axis.at(-1), height - margin.bottom, margin.top);
    this.axes(drawn ? axis : axis.slice(0, 1));
    const dark = bands(samples).map(([from, to]) => [Math.max(this.x(from), margin.left), Math.max(this.x(to), this.x(from) + 1.5)]).filter(([, to]) => to > margin.left);
    set(this.unprotected, 'd', dark.map(([from, to]) => `M${from.toFixed(1)} ${margin.top}H${to.toFixed(1)}V${height - margin.bottom}H${from.toFixed(1)}Z`).join('') || 'M0 0');
    show(this.shade, dark.length > 0);
    this.lines.forEach((l, i) => {
      const d = stacked
        ? area(samples.map((s, j) => { const [low, high] = stacked.get(l.key)[j]; return [this.x(s.at), low === null ? null : this.y(low), high === null ? null : this.y(high)]; }))
        : path(samples.map((s) => [this.x(s.at), s[l.key] === null ? null : this.y(s[l.key])]));
      set(this.shapes[i], 'd', d || 'M0 0');
    });
    this.crosshair();
  }

  axes(axis) {
    const { width } = this;
    const rows = axis.map((v) => ({ key: `y${v}`, y: this.y(v), text: v === 0 ? '0' : this.write(v) }));
    const columns = ticks(this.span, width < 400 ? 3 : 6).map((ms) => ({
      key: `x${ms}`, x: this.x(this.now - ms), text: ms === 0 ? 'now' : `−${duration(ms * 1e6)}`,
      anchor: ms === 0 ? 'end' : ms === this.span ? 'start' : 'middle',
    }));
    list(this.grid, [...rows, ...columns], (r) => r.key,
      () => svg('g', {}, svg('path', {}), svg('text', {})),
      (g, r) => {
        const [line, text] = g.children;
        if (r.key[0] === 'y') {
          set(line, 'd', `M${margin.left} ${r.y}H${width - margin.right}`);
          set(text, 'x', margin.left - 6);
          set(text, 'y', r.y + 4);
          set(text, 'text-anchor', 'end');
        } else {
          set(line, 'd', `M${r.x} ${height - margin.bottom}v4`);
          set(text, 'x', r.x);
          set(text, 'y', height - 5);
          set(text, 'text-anchor', r.anchor);
        }
        say(text, r.text);
      });
  }

  point(e) {
    const box = this.picture.getBoundingClientRect();
    const x = (e.clientX - box.left) / box.width * this.width;
    this.aim(this.now - (1 - (x - margin.left) / (this.width - margin.left - margin.right)) * this.span);
  }

  // key walks through the samples.
  key(e) {
    const n = this.samples.length;
    if (n === 0) {
      return;
    }
    const i = this.at === null ? n - 1 : nearest(this.samples, this.at);
    const to = { ArrowLeft: i - 1, ArrowRight: i + 1, ArrowDown: i - 1, ArrowUp: i + 1, PageDown: i - 60, PageUp: i + 60, Home: 0, End: n - 1, Escape: null }[e.key];
    if (to === undefined) {
      return;
    }
    e.preventDefault();
    this.aim(to === null ? null : this.samples[Math.min(n - 1, Math.max(0, to))].at);
  }

  aim(at) {
    this.at = at;
    this.crosshair();
  }

  crosshair() {
    const i = nearest(this.samples, this.at ?? this.now);
    const s = this.samples[i];
    const aimed = this.at !== null && s;
    set(this.cross, 'd', aimed ? `M${this.x(s.at)} ${margin.top}V${height - margin.bottom}` : 'M0 0');
    say(this.when, aimed ? clock(s.wall) : '');
    if (aimed) {
      const x = this.x(s.at);
      set(this.when, 'x', Math.min(this.width - 60, Math.max(margin.left, x)));
    }
    const known = aimed || (s && this.now - s.at < Math.max(quiet, 2 * this.ring.step));
    for (const l of this.lines) {
      say(this.values.get(l.key), known ? this.write(s[l.key]) : 'unknown');
    }
    if (s) {
      set(this.slider, 'aria-valuenow', Math.round((s.at - this.now) / 1000));
      if (aimed || document.activeElement !== this.slider) {
        set(this.slider, 'aria-valuetext', `${clock(s.wall)}: ${this.lines.map((l) => `${l.name} ${this.write(s[l.key])}`).join(', ')}${s.protected === 0 ? '; not protected' : ''}`);
      }
    }
  }

  tabulate() {
    if (!this.table.open) {
      return;
    }
    say(this.caption, `${this.title}: median and largest of each ${duration(this.ring.row * 1e6)}`);
    list(this.body, rows(this.samples, this.lines.map((l) => l.key), this.now, this.ring), (r) => r.part,
      () => el('tr', {}, el('th', { scope: 'row' }), ...this.lines.map(() => el('td'))),
      (tr, r) => {
        const [when, ...cells] = tr.children;
        say(when, clock(r.wall));
        cells.forEach((c, i) => say(c, r.values[i] === null ? 'unknown' : `${this.write(r.values[i].median)}, ${this.write(r.values[i].max)}`));
      });
  }
}

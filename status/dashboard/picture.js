// Draws a scene (scene.js): side by side where there is room, else one above the
// other. Shapes are made once and changed where something changed.

import { el, list, say, set, svg } from './dom.js';

const narrow = 560; // px

const wide = {
  size: [720, 308],
  boxes: [[12, 26, 236, 122], [472, 26, 236, 122], [250, 222, 220, 74]],
  link: { line: [258, 88, 462, 88], text: [360, 74, 'middle'], under: [360, 110] },
  logs: [{ line: [130, 148, 130, 259, 250, 259], text: [140, 208, 'start'] }, { line: [590, 148, 590, 259, 470, 259], text: [580, 208, 'end'] }],
};

const tall = {
  size: [344, 496],
  boxes: [[30, 8, 306, 122], [30, 214, 306, 122], [30, 410, 306, 74]],
  link: { line: [60, 138, 60, 206], text: [78, 156, 'start'], under: [78, 176] },
  logs: [{ line: [30, 69, 10, 69, 10, 447, 30, 447], text: [18, 378, 'start'] }, { line: [250, 336, 250, 410], text: [242, 378, 'end'] }],
};

export class Picture {
  constructor() {
    this.words = el('ul', { class: 'visually-hidden' });
    this.arrows = svg('defs', {}, ...['good', 'busy', 'warn', 'bad', 'off', 'unknown'].map((tone) =>
      svg('marker', { id: `arrow-${tone}`, class: `marker ${tone}`, viewBox: '0 0 10 10', refX: 9, refY: 5, markerWidth: 5, markerHeight: 5, orient: 'auto-start-reverse' },
        svg('path', { d: 'M0 0L10 5L0 10z' }))));
    this.linked = svg('g', {});
    this.boxes = svg('g', {});
    this.picture = svg('svg', { class: 'picture', 'aria-hidden': 'true', focusable: 'false' }, this.arrows, this.linked, this.boxes);
    this.root = el('section', { class: 'panel', 'aria-labelledby': 'pair' }, el('h2', { id: 'pair' }, 'The pair'), this.picture, this.words);
    this.layout = wide;
    new ResizeObserver(([e]) => {
      const next = e.contentRect.width < narrow ? tall : wide;
      if (next !== this.layout) {
        this.layout = next;
        this.draw();
      }
    }).observe(this.root);
  }

  show(scene) {
    this.scene = scene;
    this.draw();
  }

  draw() {
    const { scene, layout } = this;
    if (!scene) {
      return;
    }
    set(this.picture, 'viewBox', `0 0 ${layout.size.join(' ')}`);
    list(this.boxes, scene.hosts, (h) => h.name, makeBox, (g, h) => drawBox(g, h, layout.boxes[scene.hosts.indexOf(h)], scene));
    list(this.linked, scene.links, (l) => l.kind + l.to + l.from, makeLink, (g, l) => {
      if (l.kind === 'checkpoints') {
        drawFlow(g, l, layout.link, scene.hosts[0].name === l.from, scene.held);
      } else {
        drawLog(g, l, layout.logs[scene.hosts.findIndex((h) => h.name === l.from)] ?? layout.logs[0]);
      }
    });
    list(this.words, scene.words.map((text, i) => ({ text, i })), (w) => w.i, () => el('li'), (li, w) => say(li, w.text));
  }
}

function text(style) {
  return svg('text', { class: style });
}

function makeBox() {
  const lead = svg('g', { class: 'lead' }, svg('path', { d: 'M8 1l2.2 4.6 5 .7-3.6 3.5.9 5L8 12.4 3.5 14.8l.9-5L.8 6.3l5-.7z' }), svg('text', { x: 20, y: 13 }, 'leads the log'));
  const guest = svg('g', { class: 'inner' }, svg('rect', { rx: 6, height: 30 }), text('guestname'));
  return svg('g', {}, svg('rect', { class: 'box', rx: 10 }), text('name'), text('part'), text('heard'), lead, guest);
}

function drawBox(g, h, [x, y, width, height], scene) {
  const [box, name, part, heard, lead, guest] = g.children;
  const witness = h.kind === 'witness';
  set(g, 'class', `host ${h.tone}`);
  set(g, 'transform', `translate(${x} ${y})`);
  set(box, 'width', width);
  set(box, 'height', height);
  place(name, h.name, 14, 26, width - 28);
  place(part, h.part, 14, 46, width - 28);
  place(heard, h.heard.text, 14, witness ? 64 : 64, width - 28);
  set(heard, 'class', `heard ${h.heard.tone}`);
  set(lead, 'visibility', h.leader ? 'visible' : 'hidden');
  set(lead, 'transform', `translate(${width - 104} 13)`);
  set(guest, 'visibility', h.runs ? 'visible' : 'hidden');
  const [inner, label] = guest.children;
  set(inner, 'x', 12);
  set(inner, 'y', height - 42);
  set(inner, 'width', width - 24);
  place(label, h.runs ? `${scene.guest} ${h.runs} here` : '', 24, height - 22, width - 48);
}

// place sets a text and cuts it to a width; the words say all of it.
function place(node, words, x, y, width, anchor) {
  set(node, 'x', x);
  set(node, 'y', y);
  set(node, 'text-anchor', anchor);
  const most = Math.max(4, Math.floor(width / 7.2));
  say(node, words.length > most ? `${words.slice(0, most - 1)}…` : words);
}

function makeLink() {
  return svg('g', {}, svg('path', { class: 'wire' }), svg('path', { class: 'broken' }), text('says'), text('under'), text('under'));
}

function drawFlow(g, l, { line: [x1, y1, x2, y2], text: [tx, ty, anchor], under: [ux, uy] }, forward, held) {
  const [wire, broken, says, ...under] = g.children;
  set(g, 'class', `link flow ${l.tone}${l.flows ? ' flows' : ''}`);
  set(wire, 'd', forward ? `M${x1} ${y1}L${x2} ${y2}` : `M${x2} ${y2}L${x1} ${y1}`);
  set(wire, 'marker-end', `url(#arrow-${l.tone})`);
  cross(broken, l, (x1 + x2) / 2, (y1 + y2) / 2);
  place(says, l.text, tx, ty, 240, anchor);
  under.forEach((u, i) => place(u, held[i] ?? '', ux, uy + 17 * i, 240, anchor));
}

function drawLog(g, l, { line, text: [tx, ty, anchor] }) {
  const [wire, broken, says] = g.children;
  set(g, 'class', `link log ${l.tone}`);
  set(wire, 'd', `M${line.map((v, i) => `${i === 0 ? '' : i % 2 === 0 ? 'L' : ' '}${v}`).join('')}`);
  cross(broken, l, (line[line.length - 4] + line[line.length - 2]) / 2, (line[line.length - 3] + line[line.length - 1]) / 2);
  place(says, l.text, tx, ty, 200, anchor);
}

// cross marks a link that is silent.
function cross(node, l, x, y) {
  set(node, 'd', l.tone === 'bad' ? `M${x - 7} ${y - 7}l14 14M${x + 7} ${y - 7}l-14 14` : 'M0 0');
}

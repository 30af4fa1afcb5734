// All guests at a glance, each a link to its page; the worst come first.

import { el, icon, list, reicon, say, set } from './dom.js';

const order = ['bad', 'warn', 'unknown', 'busy', 'off', 'good'];

export class Overview {
  constructor() {
    this.head = el('h1', { tabindex: '-1' });
    this.cards = el('ul', { class: 'cards' });
    this.none = el('p', { class: 'hint' });
    this.root = el('div', { class: 'overview' }, this.head, this.none, this.cards);
  }

  // show lists [{state, text}].
  show(all, nothing) {
    const bad = all.filter((g) => g.state.key !== 'protected' && g.state.tone !== 'off');
    say(this.head, all.length === 0 ? 'No guests' : bad.length === 0 ? `All ${all.length} guests are well.` : `${bad.length} of ${all.length} guests ${bad.length === 1 ? 'is' : 'are'} not protected.`);
    say(this.none, all.length === 0 ? nothing : '');
    const sorted = [...all].sort((a, b) => order.indexOf(a.state.tone) - order.indexOf(b.state.tone) || (a.state.guest < b.state.guest ? -1 : 1));
    list(this.cards, sorted, (g) => g.state.guest, make, update);
  }
}

export function address(guest) {
  return `#/guest/${encodeURIComponent(guest)}`;
}

function make({ state }) {
  return el('li', { class: 'card' }, el('a', { href: address(state.guest) },
    icon('unknown'), el('span', { class: 'cardname' }, state.guest), el('span', { class: 'cardshort' }), el('span', { class: 'cardhead' })));
}

function update(li, { state, text }) {
  const [sign, , short, head] = li.firstElementChild.children;
  set(li, 'class', `card ${state.tone}`);
  reicon(sign, state.tone);
  say(short, text.short);
  say(head, text.head);
}

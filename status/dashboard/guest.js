// The page of one guest: what is so and what to do, the pair as a picture, the
// figures, the plots.

import { el, icon, list, reicon, say, set, show } from './dom.js';
import { Actions } from './actions.js';
import { Picture } from './picture.js';
import { Plots } from './plots.js';
import { scene } from './scene.js';
import { age, bytes, clock, count, duration, percent, plural } from './units.js';

export class GuestPage {
  constructor() {
    this.icon = icon('unknown');
    this.head = el('h1', { tabindex: '-1' });
    this.todo = el('p', { class: 'todo' });
    this.asof = el('p', { class: 'hint asof' });
    this.progress = el('progress', { max: '1', 'aria-label': 'Synchronised', hidden: true });
    this.notes = el('ul', { class: 'notes' });
    this.sign = el('div', { class: 'sign' }, this.icon);
    this.banner = el('section', { class: 'banner unknown', 'aria-label': 'State' }, this.sign,
      el('div', {}, this.head, this.progress, this.todo, this.notes, this.asof));
    this.picture = new Picture();
    this.actions = new Actions();
    this.plots = new Plots();
    this.facts = el('dl', { class: 'facts' });
    this.exits = el('ul', { class: 'plainlist' });
    this.root = el('div', { class: 'guestpage' }, this.banner,
      el('div', { class: 'main' }, this.picture.root, this.actions.root),
      el('section', { class: 'panel', 'aria-labelledby': 'figures' }, el('h2', { id: 'figures' }, 'Figures'), this.facts,
        el('details', {}, el('summary', {}, 'Ways out of the guest'), this.exits)),
      this.plots.root);
  }

  show(model, state, text, level, now) {
    this.icon = reicon(this.icon, state.tone);
    set(this.banner, 'class', `banner ${state.tone}`);
    say(this.head, text.head);
    say(this.todo, text.todo);
    show(this.todo, text.todo !== '');
    show(this.progress, state.progress !== null);
    if (state.progress !== null) {
      this.progress.value = state.progress;
      set(this.progress, 'aria-valuetext', percent(state.progress));
    }
    list(this.notes, text.notes, (n) => n.text, (n) => el('li', { class: `note ${n.tone}` }, n.text));
    say(this.asof, asOf(model, state, now));
    this.picture.show(scene(model, state, now));
    this.actions.show(model, state, level, now);
    const rows = facts(model, state, now);
    list(this.facts, rows, (r) => r.name, () => el('div', {}, el('dt'), el('dd')), (div, r) => {
      say(div.children[0], r.name);
      say(div.children[1], r.text);
    });
    const exits = state.view?.report.exits?.[state.guest] ?? [];
    list(this.exits, exits, (e) => `${e.device} ${e.treatment}`, (e) => el('li', {}, `${e.device}: ${e.treatment}`));
    show(this.exits.parentElement, exits.length > 0);
  }

  plot(past, guest, now, offered) {
    this.plots.show(past.samples(guest, this.plots.ring), now, offered);
  }
}

// asOf says how old what is shown is.
function asOf(model, state, now) {
  const { view } = state;
  if (!view) {
    return 'No host that is heard from here tells more.';
  }
  const old = model.isQuiet(view.host, now) ? 'What follows is what it said then, and may be over.' : '';
  return `As told by ${view.host}, ${age(now - view.at)} ago. ${old}`.trim();
}

// facts are the figures, each with its name. What is not known is not among them,
// or says so.
function facts(model, state, now) {
  const out = [];
  const add = (name, text) => out.push({ name, text });
  const { log, view } = state;
  if (!log) {
    return out;
  }
  const p = view?.guest.primary;
  const b = model.views(state.guest).find((v) => v.guest.backup);
  add('Owner', log.owner ? `${log.owner}, generation ${count(log.generation)}, ${log.phase}` : 'none yet');
  add('Meant to be', log.desired || 'running');
  if (p) {
    add('Mode', `${p.mode}, for ${duration(p.mode_for_ns)}`);
    add('Last commit', p.epoch > 0 ? `epoch ${count(p.epoch)}, ${duration(p.epoch_age_ns)} old when told` : 'none yet');
    add('Lease', p.lease_left_ns > 0 ? `another ${duration(p.lease_left_ns)} when told` : 'none');
    if (p.pause.samples > 0) {
      add('Pause', `${duration(p.pause.p50_ns)} median, ${duration(p.pause.p99_ns)} p99`);
    }
    if (p.commit_lag.samples > 0) {
      add('Commit lag', `${duration(p.commit_lag.p50_ns)} median, ${duration(p.commit_lag.p99_ns)} p99`);
    }
    const t = p.totals;
    if (t.raw_bytes > 0) {
      add('Sent', `${bytes(t.wire_bytes)} for ${bytes(t.raw_bytes)} of dirty memory, ${percent(1 - t.wire_bytes / t.raw_bytes)} left out`);
    }
    add('Held output', `${plural(p.held_frames, 'frame')}, ${bytes(p.held_bytes)}`);
    add('Backup heard', p.peer_age_ns === undefined ? 'unknown: no session' : `${duration(p.peer_age_ns)} before it was told`);
  }
  const d = view?.guest.disks;
  if (d) {
    add('Held disk writes', `${count(d.held_writes)}, ${bytes(d.held_bytes)} of at most ${bytes(d.held_limit_bytes)}`);
  }
  if (b) {
    const s = b.guest.backup;
    const then = model.isQuiet(b.host, now) ? `, as told ${age(now - b.at)} ago` : '';
    add(`Image on ${b.host}`, `${s.state}, epoch ${count(s.epoch)}, ${s.in_sync ? 'in sync' : 'not in sync'}${then}`);
  } else if (state.backup) {
    add(`Image on ${state.backup}`, `unknown: ${state.backup} is not heard from here`);
  }
  if (log.fenced) {
    add('Known to be off', log.fenced);
  }
  add('Bubble', bubbleOf(model, state, now));
  return out;
}

// bubbleOf is the copy that runs in isolation, or how the last one went.
function bubbleOf(model, state, now) {
  const view = model.views(state.guest).find((v) => v.guest.bubble && !model.isQuiet(v.host, now));
  if (view) {
    return `on ${view.host}, ${view.guest.bubble.stage || 'beginning'}, since ${duration(view.guest.bubble.for_ns)} when told`;
  }
  const last = model.events.find((e) => e.guest === state.guest && e.kind === 'bubble-ended');
  if (last) {
    return `none; the last ended at ${clock(new Date(last.at))}: ${last.text}`;
  }
  return state.backup && model.isQuiet(state.backup, now) ? `unknown: ${state.backup} is not heard from here` : 'none';
}

// What an operator may do from here: each is asked about first, and its answer is
// shown in the endpoint's own words.

import { el, say, set, show } from './dom.js';
import { post } from './api.js';
import { count } from './units.js';

// actions are the operations. may returns why it cannot be asked for now, '' if
// it can.
const actions = [
  {
    name: 'switchover', label: 'Switch over…', confirm: 'Switch over',
    may: (s) => (s.key === 'protected' ? '' : 'only while it is protected'),
    ask: (s) => `${s.guest} moves from ${s.owner} to ${s.backup}. Nothing is lost: a last epoch is committed, then it goes on there. It stands still for a moment, connections live on. Afterwards ${s.owner} becomes its backup.`,
    done: (g, s) => `${s.guest} runs on ${g.owner} (generation ${g.generation}).`,
  },
  {
    name: 'verify', label: 'Verify memory…', confirm: 'Verify',
    may: (s) => (s.key === 'protected' ? '' : 'only while it is protected'),
    ask: (s) => `All memory of ${s.guest} on ${s.owner} and ${s.backup} is compared while it runs. That takes some epochs and some processor time on both hosts. If it differs, the backup's image is given up and made anew.`,
    done: (v) => (v.identical ? `Identical: ${count(v.pages)} pages were compared over ${count(v.epochs)} checkpoints.` : `DIFFERENT: ${count(v.pages)} pages were compared; the backup's image is given up and made anew.`),
  },
  {
    name: 'resume', label: 'Resume protection…', confirm: 'Resume',
    wanted: (s) => s.key === 'paused' || s.key === 'off',
    may: () => '',
    ask: (s) => `${s.guest} is protected again, as soon as its backup has its memory.`,
    done: (_, s) => `The protection of ${s.guest} is on again.`,
  },
];

export class Actions {
  constructor() {
    this.result = el('p', { class: 'result', role: 'status' });
    this.hint = el('p', { class: 'hint', id: 'whynot' });
    this.rows = actions.map((a) => {
      const button = el('button', { type: 'button', onclick: () => this.ask(a) }, a.label);
      return { a, button };
    });
    this.question = el('p', { id: 'question' });
    this.cancel = el('button', { type: 'button', onclick: () => this.dialog.close() }, 'Cancel');
    this.go = el('button', { type: 'button', class: 'strong', onclick: () => this.run() });
    this.title = el('h2', { id: 'asking' });
    this.dialog = el('dialog', { 'aria-labelledby': 'asking', 'aria-describedby': 'question' }, this.title, this.question, el('div', { class: 'buttons' }, this.cancel, this.go));
    this.root = el('section', { class: 'panel actions', 'aria-labelledby': 'actions' }, el('h2', { id: 'actions' }, 'Actions'),
      el('div', { class: 'buttons' }, ...this.rows.map((r) => r.button)), this.hint, this.result, this.dialog);
    this.busy = false;
  }

  show(state, level) {
    this.state = state;
    show(this.root, level === 'operate');
    let why = '';
    for (const { a, button } of this.rows) {
      const no = a.may(state);
      show(button, a.wanted ? a.wanted(state) : true);
      button.disabled = this.busy || no !== '';
      set(button, 'aria-describedby', no ? 'whynot' : null);
      why ||= no;
    }
    say(this.hint, why ? `A switchover and a comparison are possible ${why}.` : '');
    if (this.dialog.open && this.asked.may(state) !== '') {
      this.dialog.close();
      say(this.result, `Not asked for: that is possible ${this.asked.may(state)}.`);
    }
  }

  ask(a) {
    this.asked = a;
    this.of = this.state;
    say(this.title, `${a.confirm}: ${this.of.guest}?`);
    say(this.question, a.ask(this.of));
    say(this.go, a.confirm);
    this.dialog.showModal();
    this.cancel.focus();
  }

  async run() {
    const { asked, of } = this;
    this.dialog.close();
    this.busy = true;
    set(this.result, 'class', 'result');
    say(this.result, `${asked.confirm} of ${of.guest}: asked for, please wait…`);
    try {
      const answer = await post(`/api/v1/guests/${encodeURIComponent(of.guest)}/${asked.name}`);
      say(this.result, asked.done(answer, of));
    } catch (e) {
      set(this.result, 'class', 'result bad');
      say(this.result, `${asked.confirm} of ${of.guest} failed: ${e.message}`);
    } finally {
      this.busy = false;
    }
  }
}

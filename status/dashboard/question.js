// A question to an operator before something is done: what follows from it, spelled
// out; for what cannot be taken back, a word to type. Its answer is shown in the
// endpoint's own words.

import { el, list, say, set, show } from './dom.js';
import { clock } from './units.js';

let dialogs = 0;

export class Question {
  // what came of it is told to result(text, bad).
  constructor(result) {
    this.result = (text, bad) => result(`${clock(new Date())} ${text}`, bad);
    this.number = ++dialogs;
    const id = (name) => `${name}-${this.number}`;
    this.title = el('h2', { id: id('asking') });
    this.text = el('p', {});
    this.items = el('ul', { class: 'consequences' });
    this.form = el('div', { class: 'choices' });
    this.state = el('p', { class: 'hint', role: 'status' });
    this.word = el('strong');
    this.input = el('input', { id: id('typed'), type: 'text', autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false', oninput: () => this.enable() });
    this.typed = el('p', { hidden: true }, el('label', { for: id('typed') }, 'To agree, type ', this.word), ' ', this.input);
    this.cancel = el('button', { type: 'button', onclick: () => this.dialog.close() }, 'Cancel');
    this.go = el('button', { type: 'submit', class: 'strong' });
    this.dialog = el('dialog', { 'aria-labelledby': id('asking'), 'aria-describedby': id('question'), onclose: () => this.closed() },
      el('form', { method: 'dialog', onsubmit: (e) => this.submit(e) },
        this.title, this.form, el('div', { id: id('question') }, this.text, this.items), this.state, this.typed,
        el('div', { class: 'buttons' }, this.cancel, this.go)));
    this.busy = false;
    this.current = null;
  }

  get open() { return this.dialog.open; }

  // ask opens it. asked has:
  //
  //	title, confirm    its heading, and what the button says
  //	prepare(signal)   a promise of what is asked: {text, items, type, possible, run},
  //	                  where type is the word to type ('' for none), items are
  //	                  consequences, and run does it and returns what to say
  //	form              elements that choose what is prepared
  //	danger            what is done cannot be taken back
  ask(asked) {
    this.current = asked;
    say(this.title, asked.title);
    say(this.go, asked.confirm);
    set(this.go, 'class', asked.danger ? 'strong danger' : 'strong');
    this.form.replaceChildren(...(asked.form ?? []));
    this.dialog.showModal();
    (asked.form?.[0]?.querySelector('select, input') ?? this.cancel).focus();
    this.prepare();
  }

  // prepare asks the hosts what would follow, and shows it.
  async prepare() {
    this.stop?.abort();
    const { signal } = this.stop = new AbortController();
    this.ready = null;
    this.input.value = '';
    this.shows({ text: '', items: [], type: '' });
    say(this.state, 'Asking the hosts…');
    this.enable();
    let ready;
    try {
      ready = await this.current.prepare(signal);
    } catch (e) {
      ready = { text: `It cannot be asked for now: ${e.message}`, possible: false };
    }
    if (signal.aborted) {
      return;
    }
    this.ready = { items: [], type: '', possible: true, ...ready };
    say(this.state, '');
    this.shows(this.ready);
    this.enable();
  }

  shows({ text, items, type }) {
    say(this.text, text);
    list(this.items, items.map((t, i) => ({ t, i })), (x) => `${x.i} ${x.t}`, (x) => el('li', {}, x.t));
    show(this.items, items.length > 0);
    say(this.word, type);
    show(this.typed, type !== '');
  }

  enable() {
    this.go.disabled = !this.ready?.possible || (this.ready.type !== '' && this.input.value.trim() !== this.ready.type);
  }

  submit(e) {
    e.preventDefault();
    if (!this.go.disabled) {
      this.run();
    }
  }

  closed() {
    if (this.dialog.open) {
      return; // it is told late: the question has been asked again since
    }
    this.stop?.abort();
    this.ready = null;
  }

  // withdraw closes it, since what is asked is not possible any more.
  withdraw(why) {
    this.dialog.close();
    this.result(why, false);
  }

  async run() {
    const about = this.current.title.replace(/\?$/, '');
    const { run } = this.ready;
    this.dialog.close();
    this.busy = true;
    this.result(`${about}: asked for, please wait…`, false);
    try {
      this.result(await run(), false);
    } catch (e) {
      this.result(`${about} failed: ${e.message}`, true);
    } finally {
      this.busy = false;
    }
  }
}

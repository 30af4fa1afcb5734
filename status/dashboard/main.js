// The page: asks the endpoint, keeps what it says in a Model, and shows it. Three
// things move it on: what comes from the endpoint, the passing of time (ages), and
// the address (which guest).

import { say, set, show } from './dom.js';
import { get, Refused } from './api.js';
import { Overview } from './overview.js';
import { age } from './units.js';
import { ask } from './hosts.js';
import { describe } from './words.js';
import { Drills } from './drills.js';
import { Events } from './events.js';
import { forget, keep, token } from './token.js';
import { GuestPage } from './guest.js';
import { judge } from './state.js';
import { listen } from './stream.js';
import { Model } from './model.js';
import { Past } from './past.js';
import { ReportPage } from './report.js';

const $ = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.model = new Model();
    this.past = new Past();
    this.said = new Map(); // guest → the key of the state that was last spoken of
    this.access = { level: 'nothing', name: '' };
    this.link = { state: 'connecting', why: '' };
    this.overview = new Overview();
    this.guest = new GuestPage();
    this.events = new Events();
    this.drills = new Drills();
    this.report = new ReportPage();
    this.asking = false; // for a token, of one who may look already
    this.running = null;
    this.linked = ''; // the tone of the link when it was last spoken of
    $('view').append(this.overview.root, this.guest.root, this.drills.root, this.events.root, this.report.root);
    $('signin').addEventListener('submit', (e) => this.signIn(e));
    $('signmore').addEventListener('click', () => this.signMore(true));
    $('signless').addEventListener('click', () => this.signMore(false));
    $('signout').addEventListener('click', () => this.signOut());
    // The address says which guest: it is no place to jump to.
    $('skip').addEventListener('click', (e) => { e.preventDefault(); $('view').focus(); });
    $('reload').addEventListener('click', () => location.reload());
    this.guest.plots.changed = () => this.look();
    this.guest.actions.done = () => this.drills.load(this.model).then(() => this.render());
    this.look = () => {}; // asks for the past at once
    this.see = () => {}; // … and for the rest
    window.addEventListener('hashchange', () => { this.see(); this.render(); this.look(); $('view').querySelector('h1:not([hidden] *)')?.focus(); });
    document.addEventListener('visibilitychange', () => document.hidden || (this.render(), this.look()));
  }

  // start begins anew, with the token that there is.
  start() {
    this.running?.abort();
    const { signal } = this.running = new AbortController();
    this.begin(signal);
  }

  // begin finds out who we are and what happened, then follows.
  async begin(signal) {
    for (let wait = 500; !signal.aborted; wait = Math.min(5000, wait * 2)) {
      try {
        this.access = await get('/api/v1/access');
        if (this.access.level === 'root') { // by a tunnel to the socket: the page asks for nothing that is root's alone
          this.access.level = 'operate';
        }
        if (this.access.level !== 'read' && this.access.level !== 'operate') {
          this.became('refused', '');
          return;
        }
        const report = await get('/api/v1/status');
        this.asking &&= this.access.level !== 'operate' && !token();
        this.model.self = report.host;
        this.took(report);
        const since = await this.record();
        this.follow(signal, since);
        return;
      } catch (e) {
        if (e instanceof Refused && e.status === 401) {
          this.became('refused', e.message);
          return;
        }
        this.became('lost', e.message);
        await new Promise((done) => setTimeout(done, wait));
      }
    }
  }

  async record() {
    try {
      const list = await get('/api/v1/events?limit=200');
      this.model.happened(list.events);
      return String(list.last);
    } catch (e) {
      if (e instanceof Refused && e.status === 404) {
        this.model.eventsOffered = false;
        return '';
      }
      throw e;
    }
  }

  follow(signal, since) {
    const { model } = this;
    listen({
      since, signal,
      report: (r) => this.took(r),
      event: (e) => { model.happened([e]); this.render(); },
      alive: () => model.alive(model.self, performance.now()),
      state: (name, why) => this.became(name, why),
    });
    ask(model, signal, () => this.render());
    this.watch(signal);
    this.remember(signal);
  }

  // watch asks for what the stream does not bring, and so notices soon when the
  // daemon does not answer.
  async watch(signal) {
    for (let n = 0; !signal.aborted; n++) {
      try {
        this.model.clustered(this.model.self, await get('/api/v1/cluster', { time: 3000 }), performance.now());
      } catch (e) {
        if (!signal.aborted && !(e instanceof Refused)) {
          this.model.silent(this.model.self, e.message);
        }
      }
      const drill = this.drillRoute();
      if (drill) {
        this.report.load(this.model, ...drill).then(() => this.render());
      }
      if (n % 15 === 0 || (n % 2 === 0 && this.drills.running())) {
        this.drills.load(this.model);
      }
      this.render();
      await new Promise((done) => { this.see = done; setTimeout(done, 2000); });
    }
  }

  took(report) {
    this.model.reported(report.host, report, performance.now());
    this.render();
  }

  // remember keeps the plots of the guest that is shown up to date.
  async remember(signal) {
    while (!signal.aborted) {
      const next = new Promise((done) => { this.look = done; setTimeout(done, 1000); });
      this.plot();
      const name = this.route();
      if (!document.hidden && name) {
        await this.past.load(this.model, name, this.guest.plots.ring);
        this.plot();
      }
      await next;
    }
  }

  became(state, why) {
    this.link = { state, why };
    if (state === 'lost') {
      this.model.silent(this.model.self, why);
    }
    if (state === 'refused') {
      this.running.abort(); // nothing more is asked for until somebody signs in
    }
    if (state === 'refused' && token()) {
      forget();
      say($('signinwhy'), `The token was not taken: ${why || 'it may not read'}.`);
      if (this.asking) { // who may look without one goes on to
        this.start();
        return;
      }
    }
    this.render();
  }

  // drillRoute is the drill that the address names, [host, id]; null for none.
  drillRoute() {
    const found = /^#\/drill\/([^/]+)\/([^/]+)$/.exec(location.hash);
    try {
      return found && [decodeURIComponent(found[1]), decodeURIComponent(found[2])];
    } catch {
      return null;
    }
  }

  // route is the guest that the address names; with only one, that one; '' is all.
  route() {
    if (this.drillRoute()) {
      return '';
    }
    const found = /^#\/guest\/(.+)$/.exec(location.hash);
    const guests = this.model.guests();
    if (found) {
      try {
        return decodeURIComponent(found[1]);
      } catch {
        return '';
      }
    }
    return guests.length === 1 ? guests[0] : '';
  }

  render() {
    if (document.hidden) {
      return;
    }
    try {
      this.draw();
      show($('broken'), false);
    } catch (e) {
      // What is shown is not what is so any more: that has to be seen.
      say($('broken'), `What the hosts say cannot be shown: ${e.message}`);
      show($('broken'), true);
    }
  }

  draw() {
    const { model } = this;
    const now = performance.now();
    const all = model.guests().map((name) => {
      const state = judge(model, name, now);
      return { state, text: describe(model, state, now) };
    });
    this.speak([...this.bar(now), ...this.changes(all)]);
    const known = model.self !== '';
    show($('loading'), !known && this.link.state !== 'refused');
    show($('signinbox'), this.link.state === 'refused' || this.asking);
    show($('signless'), this.asking && this.link.state !== 'refused');
    show($('view'), known);
    if (!known) {
      return;
    }
    const name = this.route();
    const one = all.find((g) => g.state.guest === name);
    const drill = this.drillRoute();
    show(this.guest.root, Boolean(one));
    show(this.overview.root, !one && !drill);
    show(this.report.root, Boolean(drill));
    show($('crumbs'), (Boolean(one) && all.length > 1) || Boolean(drill));
    say($('up'), all.length > 1 ? 'All guests' : all[0]?.state.guest ?? 'All guests');
    say($('here'), drill ? 'Report of a drill' : one ? one.state.guest : '');
    if (drill) {
      show(this.events.root, false);
      show(this.drills.root, false);
      this.report.show(this.access.level);
      document.title = `${this.report.head.textContent} – understudy`;
      return;
    }
    show(this.events.root, true);
    if (one) {
      this.guest.show(model, one.state, one.text, this.access.level, now);
    } else {
      this.overview.show(all, nothing(model));
    }
    this.events.show(model, one ? name : '');
    this.drills.show(one ? name : '');
    const title = one ? `${one.state.guest}: ${one.text.short}` : `${all.filter((g) => g.state.key === 'protected').length} of ${all.length} protected`;
    document.title = `${title} – understudy`;
  }

  plot() {
    const name = this.route();
    if (!document.hidden && !this.guest.root.hidden && name) {
      const { model, past } = this;
      this.guest.plot(past, name, performance.now(), model.pair(name).some((h) => !past.none.has(h)));
    }
  }

  // speak tells a screen reader what changed, and nothing else.
  speak(news) {
    if (news.length > 0) {
      say($('news'), `${news.join('. ')}.`);
    }
  }

  // changes are the guests whose state is another one than before.
  changes(all) {
    const news = [];
    for (const { state, text } of all) {
      const key = `${state.key} ${state.owner}`;
      if (this.said.has(state.guest) && this.said.get(state.guest) !== key) {
        news.push(text.spoken);
      }
      this.said.set(state.guest, key);
    }
    return news;
  }

  // bar is the line at the top: which host, and whether it is heard. It returns
  // the news of that.
  bar(now) {
    const { model, link } = this;
    const h = model.hosts.get(model.self);
    const silent = model.self !== '' && model.isQuiet(model.self, now);
    const since = h?.heard === null || h?.heard === undefined ? '' : `, last heard ${age(now - h.heard)} ago`;
    let tone = 'good';
    let text = 'live';
    if (link.state === 'refused') {
      [tone, text] = ['warn', 'not signed in'];
    } else if (link.state === 'connecting' && !silent) {
      [tone, text] = ['busy', `connecting${since}`];
    } else if (silent || link.state === 'lost') {
      [tone, text] = ['bad', `does not answer${since}; trying again`];
    }
    set($('link'), 'class', `link ${tone}`);
    say($('link'), text);
    say($('self'), model.self ? `host ${model.self}` : '');
    const may = this.access.level === 'read' ? 'read, and change nothing' : this.access.level;
    const who = this.access.name ? `${this.access.name} may ${may}` : `you may ${may}`;
    say($('who'), model.self && link.state !== 'refused' ? who : '');
    show($('signout'), Boolean(token()));
    show($('signmore'), !token() && this.access.level === 'read' && link.state !== 'refused' && !this.asking);
    show($('renewed'), model.renewed);
    show($('alone'), model.peers === 'no' && link.state !== 'refused');
    const before = this.linked;
    this.linked = tone;
    if (tone === 'bad' && before !== 'bad') {
      return [`${model.self || 'The endpoint'} does not answer`];
    }
    return tone === 'good' && before === 'bad' ? [`${model.self} answers again`] : [];
  }

  signIn(e) {
    e.preventDefault();
    const field = $('token');
    const ok = keep(field.value);
    field.value = '';
    say($('signinwhy'), ok ? '' : 'That is no token: 16 to 256 letters, digits and -._~+/=.');
    if (ok) {
      this.link = { state: 'connecting', why: '' };
      this.start();
    } else {
      field.focus();
    }
  }

  // signMore asks who may look already for a token that may more.
  signMore(yes) {
    this.asking = yes;
    this.render();
    (yes ? $('token') : $('signmore')).focus();
  }

  signOut() {
    forget();
    location.reload();
  }
}

function nothing(model) {
  return model.isWitness(model.self)
    ? `${model.self} is the witness: it votes, and runs no guest.${model.peers === 'yes' ? '' : ' Ask the endpoint of another host.'}`
    : 'This host has no guests: see the [[guest]] sections of the configuration.';
}

const page = new Page();
page.start();
setInterval(() => page.render(), 500);

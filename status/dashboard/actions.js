// What an operator may do from here. Each is asked about first (question.js), with
// what follows from it.

import { el, say, set, show } from './dom.js';
import { get, of, post, remove } from './api.js';
import { Question } from './question.js';
import { count, duration } from './units.js';

const running = ['protected', 'syncing', 'alone', 'waiting', 'paused', 'off'];
const lost = ['owner-silent', 'backup-only', 'unknown', 'asking', 'activating', 'no-primary', 'superseded', 'no-lease'];
// fed: the owner lives, whoever does not hear it here.
const fed = (s) => s.standby?.guest.backup?.state === 'fed';
const inSync = (s) => (s.key === 'protected' ? '' : 'only while it is protected');
const runs = (s) => (running.includes(s.key) ? '' : 'only while its owner runs it');

function path(guest, operation) {
  return `/api/v1/guests/${encodeURIComponent(guest)}/${operation}`;
}

function at(model, host, p) {
  return host === model.self ? p : of(host, p);
}

// simple is an operation that its owner does, whoever is asked.
function simple(operation, text, items, done) {
  return (s) => ({ text: text(s), items: items(s), run: async () => done(await post(path(s.guest, operation)), s) });
}

// actions are the operations:
//
//	wanted(s)          whether it is among those that are shown; absent: it is
//	may(s)             why it cannot be asked for now, '' if it can
//	prepare(s, model)  what is asked, see Question
const actions = [
  {
    label: () => 'Switch over…', confirm: 'Switch over', may: inSync,
    prepare: simple('switchover',
      (s) => `${s.guest} moves from ${s.owner} to ${s.backup}. Nothing is lost: a last epoch is committed, then it goes on there.`,
      (s) => ['It stands still for a moment; connections live on.', `Afterwards ${s.owner} becomes its backup, and it is protected again once that is in sync.`],
      (g, s) => `${s.guest} runs on ${g.owner} (generation ${g.generation}).`),
  },
  {
    label: (s) => `Bring home to ${s.home}…`, confirm: 'Bring home', may: inSync,
    wanted: (s) => s.home !== '' && s.owner !== '' && s.home !== s.owner,
    prepare: simple('failback',
      (s) => `${s.guest} goes back from ${s.owner} to ${s.home}, the host that the configuration names for it. Nothing is lost: a last epoch is committed, then it goes on there.`,
      (s) => ['It stands still for a moment; connections live on.', `Afterwards ${s.owner} becomes its backup.`],
      (g, s) => `${s.guest} is home: it runs on ${g.owner} (generation ${g.generation}).`),
  },
  {
    label: () => 'Verify memory…', confirm: 'Verify', may: inSync,
    prepare: simple('verify',
      (s) => `All memory of ${s.guest} on ${s.owner} and ${s.backup} is compared while it runs.`,
      () => ['That takes some epochs and some processor time on both hosts.', "If it differs, the backup's image is given up and made anew."],
      (v) => (v.identical ? `Identical: ${count(v.pages)} pages were compared over ${count(v.epochs)} checkpoints.` : `DIFFERENT: ${count(v.pages)} pages were compared; the backup's image is given up and made anew.`)),
  },
  {
    label: () => 'Run a drill…', confirm: 'Begin the drill', may: inSync, drill: true,
  },
  {
    label: () => 'Pause protection…', confirm: 'Pause', may: runs, wanted: (s) => s.key !== 'paused' && s.key !== 'off',
    prepare: simple('pause',
      (s) => `${s.guest} runs on without protection until somebody resumes it.`,
      (s) => [`If ${s.owner} fails meanwhile, ${s.guest} is down until ${s.owner} is back. No host takes it over by itself.`, 'Its output leaves at once; nothing waits for a commit.',
        `${s.backup || 'The backup'} keeps its image, so that resuming sends only what changed.`],
      (_, s) => `The protection of ${s.guest} is paused.`),
  },
  {
    label: () => 'Resume protection…', confirm: 'Resume', may: () => '', wanted: (s) => s.key === 'paused',
    prepare: simple('resume', (s) => `${s.guest} is protected again, as soon as its backup has its memory.`, () => ['Only what changed is sent.'], (_, s) => `The protection of ${s.guest} is on again.`),
  },
  {
    label: () => 'Protect…', confirm: 'Protect', may: () => '', wanted: (s) => s.key === 'off',
    prepare: simple('protect', (s) => `${s.guest} is protected again, as soon as its backup has its memory.`, () => ['All of its memory is copied first.'], (_, s) => `The protection of ${s.guest} is on again.`),
  },
  {
    label: () => 'Unprotect…', confirm: 'Unprotect', may: runs, wanted: (s) => s.key !== 'off', danger: true,
    prepare: simple('unprotect',
      (s) => `${s.guest} gives its protection up until somebody protects it again.`,
      (s) => [`If ${s.owner} fails meanwhile, ${s.guest} is down until ${s.owner} is back. No host takes it over by itself.`, 'Its output leaves at once; nothing waits for a commit.',
        `${s.backup || 'The backup'} frees its image and the memory for it: to protect the guest again, all of its memory is copied.`],
      (_, s) => `${s.guest} is not protected any more.`),
  },
  {
    label: (s) => `Take over on ${s.other}…`, confirm: 'Take over', may: () => '', wanted: (s) => s.other !== '' && lost.includes(s.key) && !fed(s), danger: true, prepare: takeOver,
  },
  {
    label: (s) => `${s.owner} is off…`, confirm: 'It is off', may: () => '', danger: true,
    wanted: (s) => s.other !== '' && s.log?.fenced !== s.owner && ['owner-silent', 'backup-only', 'asking'].includes(s.key) && !fed(s),
    prepare: (s, model) => ({
      text: `You say that host ${s.owner} is powered off, and that somebody has seen it.`,
      items: ['Its guests may be taken over at once: nobody waits for the lease that it may still have, nor for its lock of a shared disk.',
        'If it is not off, a guest can run twice, and its disk is damaged.', `It holds until the daemon of ${s.owner} is started anew.`],
      type: s.owner,
      run: async () => {
        const f = await post(at(model, s.other, `/api/v1/fence/${encodeURIComponent(s.owner)}`));
        return `The ownership log knows that ${s.owner} is off, for ${f.guests.filter((g) => g.fenced).map((g) => g.guest).join(', ')}.`;
      },
    }),
  },
  {
    label: () => 'End the bubble…', confirm: 'End', may: () => '', wanted: (s) => s.bubble !== '',
    prepare: (s, model) => ({
      text: `The copy of ${s.guest} that runs in isolation on ${s.bubble} is thrown away. ${s.guest} itself goes on as it is.`,
      items: ['A check that runs in it is ended, and whoever asked for it is told so.'],
      run: async () => {
        await remove(at(model, s.bubble, path(s.guest, 'bubble')));
        return 'The bubble is ended.';
      },
    }),
  },
];

// takeOver asks the host that shall get the guest what that would cost.
async function takeOver(s, model) {
  const where = at(model, s.other, path(s.guest, 'failover'));
  const cost = await get(where, { time: 15_000 });
  const run = async () => {
    const g = await post(where, { force: cost.way !== 'takeover', lose: cost.consent ?? '' });
    return `${s.guest} runs on ${g.owner} (generation ${g.generation}).`;
  };
  if (cost.way === 'none' || (cost.way === 'takeover' && cost.why)) {
    return { text: `${s.other} cannot take it over: ${cost.why}.`, possible: false };
  }
  if (cost.way === 'takeover') {
    return { text: `${s.other} takes ${s.guest} over as soon as the lease of ${cost.owner} has run out: its image is in sync. Nothing that the world has seen is lost.`, items: [], run };
  }
  return {
    text: cost.way === 'image'
      ? `By force, ${s.guest} goes on at ${cost.host} from epoch ${cost.epoch}, committed ${duration(cost.epoch_age_ns)} ago; ${cost.why}.`
      : `By force, ${s.guest} is booted anew at ${cost.host}; ${cost.why}.`,
    items: cost.loses ?? [], type: s.guest, run,
  };
}

const kinds = [
  ['bubble', 'Bubble: start the copy on the backup in isolation; the guest notices nothing'],
  ['switchover', 'Switchover: move it to its backup and back; nothing is lost'],
  ['failover kill', 'Failover: kill the daemon and the guest on its host'],
  ['failover freeze', 'Failover: freeze both for a time'],
  ['failover cut', 'Failover: cut its host off the network for a time'],
];

// drillOf is the drill that is chosen, planned by the host that would run it.
async function drillOf(s, model, chosen) {
  const [kind, fault] = chosen.split(' ');
  const spec = { guest: s.guest, kind, ...(fault ? { fault } : {}) };
  const witness = model.voters().find((v) => v.witness)?.host;
  const host = model.peers !== 'yes' ? model.self : witness ?? (kind === 'bubble' ? model.self : s.backup);
  const plan = await post(at(model, host, '/api/v1/drills/plan'), spec);
  const no = (plan.conditions ?? []).filter((c) => !c.holds);
  if (!plan.possible) {
    return { text: `${plan.host} cannot run it now.`, items: no.map((c) => `${c.name}: no. ${c.text}`), possible: false };
  }
  const away = plan.outage.time_ns > 0 ? `${s.guest} is away for about ${duration(plan.outage.time_ns)} each time: ${plan.outage.why}.` : `${s.guest} is not away: ${plan.outage.why}.`;
  return {
    text: `${plan.host} runs it, and puts everything back. ${away}`,
    items: [...plan.steps.map((t) => `Step: ${t}`), ...plan.risks.map((t) => `Risk: ${t}`)],
    type: kind === 'failover' ? s.guest : '',
    run: async () => {
      const { id } = await post(at(model, host, '/api/v1/drills'), spec);
      return `Drill ${id} runs on ${plan.host}: it is among the drills below.`;
    },
  };
}

export class Actions {
  constructor() {
    this.result = el('p', { class: 'result', role: 'status' });
    this.hint = el('p', { class: 'hint', id: 'whynot' });
    this.rows = actions.map((a) => ({ a, button: el('button', { type: 'button', class: a.danger ? 'danger' : false, onclick: () => this.ask(a) }) }));
    this.question = new Question((text, bad) => {
      set(this.result, 'class', bad ? 'result bad' : 'result');
      say(this.result, text);
      this.done();
    });
    this.done = () => {}; // something was done, or was not
    this.kind = el('select', { id: 'drillkind', onchange: () => this.question.prepare() }, ...kinds.map(([value, text]) => el('option', { value }, text)));
    this.root = el('section', { class: 'panel actions', 'aria-labelledby': 'actions' }, el('h2', { id: 'actions' }, 'Actions'),
      el('div', { class: 'buttons' }, ...this.rows.map((r) => r.button)), this.hint, this.result, this.question.dialog);
  }

  show(model, state, level, now) {
    this.model = model;
    this.state = told(model, state, now);
    const s = this.state;
    show(this.root, level === 'operate');
    const waits = new Map(); // why → labels
    for (const { a, button } of this.rows) {
      const wanted = a.wanted ? a.wanted(s) : true;
      const no = a.may(s);
      show(button, wanted);
      say(button, a.label(s));
      button.disabled = this.question.busy || no !== '';
      set(button, 'aria-describedby', no ? 'whynot' : null);
      if (wanted && no) {
        waits.set(no, [...(waits.get(no) ?? []), a.label(s).replace('…', '')]);
      }
    }
    say(this.hint, [...waits].map(([why, labels]) => `Possible ${why}: ${labels.join(', ')}.`).join(' '));
    if (this.question.open && this.asked.may(s) !== '') {
      this.question.withdraw(`Not asked for: that is possible ${this.asked.may(s)}.`);
    }
  }

  ask(a) {
    this.asked = a;
    const { model, state } = this;
    this.question.ask({
      title: `${state.guest}: ${a.label(state).replace('…', '')}?`, confirm: a.confirm, danger: a.danger,
      form: a.drill ? [el('p', {}, el('label', { for: 'drillkind' }, 'Which drill? '), this.kind)] : [],
      prepare: async () => (a.drill ? drillOf(state, model, this.kind.value) : a.prepare(state, model)),
    });
  }
}

// told is a state with what else the actions go by: the host that the configuration
// names, the host that could get the guest, the host that has a bubble of it.
function told(model, state, now) {
  const views = model.views(state.guest);
  const home = views.map((v) => v.guest.home).find(Boolean) ?? '';
  const bubble = views.find((v) => v.guest.bubble)?.host ?? '';
  const other = model.pair(state.guest).find((h) => h !== state.owner && !model.isQuiet(h, now) && (h === model.self || model.peers === 'yes')) ?? '';
  return { ...state, home, bubble, other };
}

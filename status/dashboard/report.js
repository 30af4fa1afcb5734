// The report of one drill: what was done, what was measured, what was found, and
// with what evidence.

import { el, list, say, set, show } from './dom.js';
import { get, of, Refused, remove } from './api.js';
import { Question } from './question.js';
import { clock, count, day, duration } from './units.js';

export const states = {
  running: ['busy', 'running'], held: ['good', 'all held'], failed: ['bad', 'FAILED'], refused: ['warn', 'refused'], skipped: ['warn', 'skipped'],
  aborted: ['warn', 'given up'], interrupted: ['warn', 'interrupted'],
};

const verdicts = { held: 'held', broken: 'BROKEN', unknown: 'unknown' };

// title is what a drill is called.
export function title(d) {
  const what = [d.kind, d.fault].filter(Boolean).join(', ');
  return d.name ? `${d.name}: ${what}` : what;
}

// address is that of a drill's report on this page.
export function address(host, id) {
  return `#/drill/${encodeURIComponent(host)}/${encodeURIComponent(id)}`;
}

export class ReportPage {
  constructor() {
    this.of = null; // {host, id}
    this.report = null;
    this.head = el('h1', { tabindex: '-1' });
    this.why = el('p', { class: 'todo' });
    this.about = el('p', { class: 'hint' });
    this.result = el('p', { class: 'result', role: 'status' });
    this.question = new Question((text, bad) => {
      set(this.result, 'class', bad ? 'result bad' : 'result');
      say(this.result, text);
    });
    this.giveUp = el('button', { type: 'button', onclick: () => this.ask() }, 'Give the drill up…');
    this.banner = el('section', { class: 'banner unknown', 'aria-label': 'Outcome' }, el('div', {}, this.head, this.why, this.about, this.giveUp, this.result, this.question.dialog));
    this.figures = el('dl', { class: 'facts widefacts' });
    this.left = el('ul', { class: 'plainlist' });
    this.checks = table('Checks', ['Check', 'Result', 'What was found']);
    this.guarantees = table('Guarantees', ['Guarantee', 'Result', 'Evidence']);
    this.steps = table('Timeline', ['When', 'Host', 'Kind', 'What']);
    this.before = table('Before it began', ['Condition', 'Holds', 'Why']);
    this.measured = panel('Measured', this.figures);
    this.leftover = panel('Left over', this.left);
    this.root = el('div', { class: 'report' }, this.banner, this.measured, this.leftover, this.checks.root, this.guarantees.root, this.steps.root, this.before.root);
  }

  // load asks for the report, again and again while the drill runs.
  async load(model, host, id) {
    const same = this.of?.host === host && this.of?.id === id;
    if (same && this.report && this.report.state !== 'running') {
      return;
    }
    if (!same) {
      [this.of, this.report, this.trouble] = [{ host, id }, null, ''];
      say(this.result, '');
    }
    const path = this.path(model);
    try {
      const report = await get(path);
      if (this.of.host === host && this.of.id === id) {
        [this.report, this.trouble] = [report, ''];
      }
    } catch (e) {
      this.trouble = e instanceof Refused && e.status === 404 ? `${host} has no such report` : e.message;
    }
  }

  path(model) {
    const path = `/api/v1/drills/${encodeURIComponent(this.of.id)}`;
    this.asks = this.of.host === model.self ? path : of(this.of.host, path);
    return this.asks;
  }

  ask() {
    const path = this.asks;
    this.question.ask({
      title: 'Give the drill up?', confirm: 'Give it up',
      prepare: async () => ({
        text: 'What it has done is undone: a strike ends, a bubble is thrown away, the guest goes back to where it was. Until then it runs.', items: [],
        run: async () => { await remove(path); return 'It is given up, and cleans up.'; },
      }),
    });
  }

  show(level) {
    const r = this.report;
    const [tone, word] = states[r?.state] ?? ['unknown', String(r?.state ?? 'unknown')];
    set(this.banner, 'class', `banner ${r ? tone : 'unknown'}`);
    say(this.head, r ? `Drill of ${r.spec?.guest}, ${title(r.spec ?? {})}: ${word}.` : this.trouble ? 'The report cannot be shown.' : 'Asking for the report…');
    say(this.why, r ? String(r.why ?? '') : this.trouble ?? '');
    show(this.why, this.why.textContent !== '');
    const began = new Date(r?.began ?? NaN);
    say(this.about, r ? `Drill ${r.id}, run by ${r.host}, began ${day(began)} ${clock(began)}, ${r.state === 'running' ? `now: ${r.phase ?? 'beginning'}` : `took ${duration(r.took_ns)}`}${r.scheduled ? ', by its schedule' : ''}${r.from ? `; the guest was owned by ${r.from}, with its backup on ${r.to}` : ''}.` : '');
    show(this.giveUp, r?.state === 'running' && level === 'operate');
    this.giveUp.disabled = this.question.busy;
    const rows = r ? figures(r) : [];
    show(this.measured, rows.length > 0);
    list(this.figures, rows, ([name]) => name, () => el('div', {}, el('dt'), el('dd')), (div, [name, text]) => { say(div.children[0], name); say(div.children[1], text); });
    const left = all(r?.left);
    show(this.leftover, left.length > 0);
    list(this.left, left, (t) => t, (t) => el('li', { class: 'note bad' }, String(t)));
    this.checks.fill(all(r?.checks).map((c) => [c.verdict, c.name, verdicts[c.verdict] ?? c.verdict, c.output ? `${c.text} Its output: ${c.output}` : c.text]));
    this.guarantees.fill(all(r?.guarantees).map((g) => [g.verdict, g.name, verdicts[g.verdict] ?? g.verdict, g.evidence]));
    this.steps.fill(all(r?.timeline).map((s) => [s.kind === 'phase' ? 'phase' : s.kind === 'strike' ? 'broken' : 'plain', when(s), s.host, s.kind, s.text]));
    this.before.fill(all(r?.conditions).map((c) => [c.holds ? 'held' : 'broken', c.name, c.holds ? 'yes' : 'NO', c.text]));
  }
}

// all is a list, whatever a host may say.
function all(list) {
  return Array.isArray(list) ? list.filter((x) => x !== null && x !== undefined) : [];
}

function panel(name, ...children) {
  return el('section', { class: 'panel', 'aria-label': name }, el('h2', {}, name), ...children);
}

// table makes one that is hidden while it is empty.
function table(name, heads) {
  const body = el('tbody');
  const root = panel(name, el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${name}, the table` },
    el('table', {}, el('caption', { class: 'visually-hidden' }, name), el('thead', {}, el('tr', {}, ...heads.map((h) => el('th', { scope: 'col' }, h)))), body)));
  return {
    root,
    fill(rows) {
      show(root, rows.length > 0);
      list(body, rows.map((row, i) => ({ row, key: `${i} ${row.join(' ')}` })), (x) => x.key,
        ({ row: [kind, first, ...rest] }) => el('tr', { class: `row ${{ held: 'good', broken: 'bad', unknown: 'warn', phase: 'phase' }[kind] ?? 'plain'}` },
          el('th', { scope: 'row' }, String(first ?? '')), ...rest.map((t) => el('td', {}, String(t ?? '')))));
    },
  };
}

// when is a time since the drill began, with its error if it has one.
function when(s) {
  const at = `${(s.at_ns / 1e9).toFixed(3)} s`;
  return s.error_ns > 0 ? `${at} ± ${duration(s.error_ns)}` : at;
}

function measured(m, otherwise) {
  return m ? `${duration(m.took_ns)}${m.error_ns > 0 ? ` ± ${duration(m.error_ns)}` : ''}` : otherwise;
}

// figures are what was measured.
function figures(r) {
  const out = [];
  if (r.rto && (r.rto.running || r.rto.first_output || r.rto.outage)) {
    out.push(['Ran again after', measured(r.rto.running, 'not seen')], ['First output after', measured(r.rto.first_output, 'none was seen')]);
    if (r.rto.outage) {
      out.push(['Longest outage, as the probe saw it', measured(r.rto.outage, '')]);
    }
  }
  if (r.rto?.text) {
    out.push(['How long it was away', r.rto.text]);
  }
  if (r.rpo) {
    out.push(['Went on from epoch', count(r.rpo.resumed_epoch)], ['Set back by', measured(r.rpo.age_ns, 'not measured')], ['Output lost', r.rpo.output_lost]);
  }
  if (r.bubble) {
    out.push(['The copy was of epoch', count(r.bubble.epoch)]);
    if (r.bubble.started_ns > 0) {
      out.push(['It ran after', duration(r.bubble.started_ns)]);
    }
    out.push(['Nothing is left of it', r.bubble.ended ? 'yes' : 'NO']);
  }
  return out;
}

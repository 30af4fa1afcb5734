// The words for a state: what is so, and what to do. Pure.

import { age, clock, duration, percent } from './units.js';
import { lastMove } from './state.js';

// reasons are the words for why a guest is not protected.
const reasons = {
  'no-backup-yet': (s) => `${s.backup} has no image of it yet`,
  'backup-silent': (s) => `${s.backup} fell silent`,
  'backup-gone': (s) => `the daemon on ${s.backup} is not there`,
  'no-ack': (s) => `${s.backup} did not acknowledge a checkpoint in time`,
  'backup-stalled': (s) => `${s.backup} took nothing while the guest stood still for it`,
  'image-differs': (s) => `the memory on ${s.backup} was not the guest's; it is made anew`,
  'image-lost': (s) => `the image on ${s.backup} is gone`,
  'no-capture': () => 'no checkpoint of the guest can be taken',
  'taken-back': (s) => `it came back from ${s.backup}`,
};

const bySelf = 'It is protected again by itself as soon as that is possible.';

function seeTo(host) {
  return `See that ${host} is up, that understudyd runs there (systemctl status understudyd), and that the hosts reach each other's port.`;
}

// texts are headline and advice of each state. A headline begins with the guest.
const texts = {
  protected: (s) => ({
    head: `is protected: runs on ${s.owner}, ${s.backup} stands by, ${behind(s)}`,
    todo: '',
  }),
  syncing: (s) => ({
    head: `is not protected yet: runs on ${s.owner}, and ${s.backup} is being synchronised${s.progress === null ? '' : `, ${percent(s.progress)} done`}`,
    todo: 'Nothing to do: it goes on by itself. Until then, the loss of the host is the loss of the guest.',
  }),
  alone: (s) => ({
    head: `is NOT protected: runs on ${s.owner} alone${reasons[s.why] ? `, since ${reasons[s.why](s)}` : ''}`,
    todo: `${s.why === 'no-capture' ? `The log of understudyd on ${s.owner} says why.` : seeTo(s.backup || 'the backup')} ${bySelf}`,
  }),
  waiting: (s) => ({
    head: `waits: ${s.backup} does not answer, and output is held until it does`,
    todo: `If it stays silent, ${s.owner} goes on alone in a moment, unprotected. ${seeTo(s.backup)}`,
  }),
  detaching: (s) => ({
    head: `waits: ${s.backup} is lost, and output is held until the ownership log has recorded that`,
    todo: s.leaderless ? noMajority(s) : 'Nothing to do: that takes a moment.',
  }),
  paused: (s) => ({
    head: `is NOT protected: an operator paused its protection; it runs on ${s.owner} alone`,
    todo: `Resume it when the maintenance is over: understudy resume ${s.guest}. Only what changed is sent then.`,
  }),
  off: (s) => ({
    head: `is NOT protected: an operator switched its protection off; it runs on ${s.owner} alone`,
    todo: `To protect it again: understudy protect ${s.guest}.`,
  }),
  asking: (s) => ({
    head: `is failing over: ${s.view.host} does not hear from ${s.owner}, and asks for the guest`,
    todo: s.leaderless ? noMajority(s) : 'Nothing to do: it is granted once the lease of the old host has run out.',
  }),
  activating: (s) => ({
    head: `is failing over: ${s.owner} brings it up from the last commit`,
    todo: 'Nothing to do: that takes a moment.',
  }),
  surrendered: (s) => ({
    head: `is moving: ${s.owner} has given it up, ${s.log.backup.host || s.backup} takes it`,
    todo: 'Nothing to do: that takes a moment.',
  }),
  leaving: (s) => ({
    head: `is moving: ${s.owner} commits a last epoch`,
    todo: 'Nothing to do: that takes a moment.',
  }),
  arriving: (s) => ({ head: `is moving: the log names ${s.owner} its owner, and ${s.owner} takes it`, todo: 'Nothing to do: that takes a moment.' }),
  stopping: (s) => ({ head: `is being stopped on ${s.owner}`, todo: 'Nothing to do: a last epoch is committed.' }),
  stopped: (s) => ({ head: 'is stopped, as it was told to', todo: `To start it again: understudy start ${s.guest}, on the host it is to run on.` }),
  never: (s) => ({
    head: 'was never started',
    todo: s.leaderless ? noMajority(s) : 'It is booted by the host that the configuration names, as soon as that is up and two of the three hosts are.',
  }),
  booting: (s) => ({ head: `is being booted on ${s.view.host}`, todo: '' }),
  starting: (s) => ({ head: `is being started on ${s.owner}`, todo: '' }),
  recovering: (s) => ({ head: `is looked for on ${s.owner} by a daemon that came up again`, todo: 'Nothing to do, unless it stays so: then the log of understudyd says why.' }),
  restoring: (s) => ({ head: `is being restored from a checkpoint file on ${s.owner}`, todo: '' }),
  'no-primary': (s) => ({
    head: `does not run: ${s.owner} owns it, and is ${s.view.guest.role}`,
    todo: `The log of understudyd on ${s.owner} says why.`,
  }),
  superseded: (s) => ({
    head: `stands still on ${s.owner}: another host owns it, or is taking it over`,
    todo: 'Nothing to do: the host gives its stale guest up and becomes the backup.',
  }),
  'no-lease': (s) => ({
    head: `stands still: ${s.owner} holds no lease, so nothing may leave it`,
    todo: noMajority(s),
  }),
  'owner-silent': (s) => ({
    head: `is in an unknown state: ${s.owner} has not answered for ${age(s.silentFor)}`,
    todo: `${comes(s)} ${seeTo(s.owner)}`,
  }),
  'backup-only': (s) => ({
    head: onlyBackup(s),
    todo: `Whether it is protected is for ${s.owner} to say: ask the endpoint of ${s.owner}.`,
  }),
  unknown: (s) => ({
    head: 'is in an unknown state: no host that is heard from here knows of it',
    todo: s.owner ? `Ask the endpoint of ${s.owner}, which owns it as far as is known.` : 'Look from another host.',
  }),
};

// comes is what comes of a guest whose owner is not heard.
function comes(s) {
  const by = s.standby?.host;
  if (!by) {
    return `Neither of its hosts is heard from here: whether ${s.backup || 'the backup'} has taken it over is for that host to say.`;
  }
  if (s.log.protection === 'paused' || s.log.protection === 'off') {
    return `No host takes it over by itself: its protection is ${s.log.protection}. If ${s.owner} is lost, an operator can take it over on ${by}, and is told what that loses.`;
  }
  if (s.log.in_sync) {
    return `If ${s.owner} is lost, ${by} takes it over by itself once the lease of ${s.owner} has run out.`;
  }
  return `No host takes it over by itself: the log names no backup in sync. If ${s.owner} is lost, an operator can take it over on ${by}, and is told what that loses.`;
}

function onlyBackup(s) {
  const b = s.view.guest.backup;
  if (b.state === 'fed' && b.in_sync) {
    return `runs on ${s.owner}, as far as ${s.view.host} knows, whose image is in sync, ${duration(b.epoch_age_ns)} old`;
  }
  return `runs on ${s.owner}, as far as ${s.view.host} knows, whose image is not in sync`;
}

function noMajority(s) {
  return `${s.leaderless ? `No majority: ${s.leaderless}. ` : ''}Two of the three hosts have to be up and reach each other: see to the one that is missing.`;
}

function behind(s) {
  const p = s.view.guest.primary;
  return p.epoch > 0 ? `${duration(p.epoch_age_ns)} behind` : 'with no commit yet';
}

// shorts are the words for a state where there is little room.
const shorts = {
  protected: 'protected', syncing: 'synchronising', alone: 'not protected', waiting: 'waits for its backup', detaching: 'waits for the log',
  paused: 'protection paused', off: 'protection off', asking: 'failing over', activating: 'failing over', surrendered: 'moving', leaving: 'moving', arriving: 'moving',
  stopping: 'stopping', stopped: 'stopped', never: 'never started', booting: 'booting', starting: 'starting', recovering: 'recovering',
  restoring: 'restoring', 'no-primary': 'does not run', superseded: 'superseded', 'no-lease': 'stands still: no lease', 'owner-silent': 'unknown: no answer',
  'backup-only': 'unknown here', unknown: 'unknown',
};

// describe returns
//
//	head     one sentence: what is so
//	short    the same in two words
//	todo     what to do; '' for nothing
//	notes    more sentences, each with a tone
//	spoken   what a screen reader is told when the state changes
export function describe(model, state, now) {
  const text = (texts[state.key] ?? texts.unknown)(state);
  const short = shorts[state.key] ?? shorts.unknown;
  return { head: `${state.guest} ${text.head}.`, short, todo: text.todo, notes: notes(model, state, now), spoken: `${state.guest}: ${spoken(state, short)}` };
}

function spoken(s, short) {
  if (s.key === 'protected') {
    return `protected, runs on ${s.owner}, ${s.backup} stands by`;
  }
  return `${short}${s.owner ? `, owned by ${s.owner}` : ''}`;
}

function notes(model, s, now) {
  const out = [];
  if (s.log?.fenced) {
    out.push({ tone: 'warn', text: `${s.log.fenced} is known to be off: nobody waits for its lease, nor for its locks. That holds until its daemon is started anew.` });
  }
  for (const v of model.views(s.guest)) {
    if (v.guest.bubble && !model.isQuiet(v.host, now)) {
      out.push({ tone: 'plain', text: `A copy of it runs in isolation on ${v.host} (${v.guest.bubble.stage || 'beginning'}): a bubble, of which nothing gets out.` });
    }
  }
  const guest = s.view?.guest;
  const told = ['no-lease', 'never', 'asking', 'detaching'].includes(s.key);
  if (s.leaderless && !told) {
    out.push({ tone: 'warn', text: `No majority: ${s.leaderless}. No host can take a guest over until two of the three are up and reach each other.` });
  }
  if (guest?.problem) {
    out.push({ tone: 'bad', text: `In the way on ${s.view.host}, and tried again: ${guest.problem}` });
  }
  if (guest?.primary?.last_error && s.key !== 'protected' && s.log.protection !== 'paused' && s.log.protection !== 'off') {
    out.push({ tone: 'warn', text: `Last trouble with the backup: ${guest.primary.last_error}` });
  }
  if (guest?.disks?.problem) {
    out.push({ tone: 'bad', text: `Disk trouble: ${guest.disks.problem}` });
  }
  if (guest?.missing_pages > 0) {
    out.push({ tone: 'warn', text: 'A restore is not finished: part of its memory is still only in the checkpoint file.' });
  }
  const move = s.owner && lastMove(model, s.guest, s.owner);
  if (move && ['protected', 'syncing', 'alone', 'waiting', 'paused', 'off'].includes(s.key)) {
    out.push({ tone: 'plain', text: moved(move) });
  }
  return out;
}

function moved(m) {
  const from = m.from ? ` from ${m.from}` : '';
  const how = { true: `Handed over${from}`, false: `Taken over${from}, which fell silent,`, null: `Taken over${from}` }[m.planned];
  const long = m.outage === null ? '' : `; its first output left ${duration(m.outage)} after ${m.planned ? 'it was handed over' : 'the new host asked for it'}`;
  return `${how} at ${clock(new Date(m.at))}${long}.`;
}

// What the picture of a pair shows: boxes, links and words, from what is known.
// Pure; picture.js draws it, and its description says the same in words.

import { age, bytes, plural } from './units.js';

// silent is after how long without a word a link to the log's leader counts as
// silent, in milliseconds.
const silent = 3000;

// scene returns
//
//	guest   its name
//	hosts   [{name, kind: 'host' | 'witness', tone, part, leader, heard, runs}], a pair and the witness
//	links   [{from, to, kind: 'checkpoints' | 'log', tone: good, busy, bad, unknown; flows, text}]
//	held    what is held before it leaves the guest, in lines; none if that is not known
//	words   sentences that say the same as the picture
export function scene(model, state, now) {
  const pair = model.pair(state.guest);
  const voters = model.voters();
  const witnesses = voters.filter((v) => v.witness).map((v) => v.host);
  const leader = leaderOf(model, now);
  const views = model.views(state.guest);
  const hosts = [
    ...pair.map((name) => hostOf(model, state, name, views.find((v) => v.host === name), leader, now)),
    ...witnesses.slice(0, 1).map((name) => witnessOf(model, name, leader, now)),
  ];
  const links = [];
  if (pair.length === 2) {
    links.push(checkpoints(model, state, pair, now));
  }
  for (const w of witnesses.slice(0, 1)) {
    links.push(...pair.map((h) => logLink(model, h, w, leader, now)));
  }
  const held = heldOf(state, model, now);
  return { guest: state.guest, hosts, links, held, leader, words: wordsOf(hosts, links, held, leader) };
}

// leaderOf is the leader of the log as the newest host that is heard knows it.
function leaderOf(model, now) {
  let best = null;
  for (const h of model.hosts.values()) {
    if (h.cluster?.leader && !model.isQuiet(h.name, now) && (!best || (h.cluster.term ?? 0) > (best.cluster.term ?? 0))) {
      best = h;
    }
  }
  return best?.cluster.leader ?? '';
}

const parts = { yielding: 'superseded', recovering: 'looks for its guest', booting: 'boots it', restoring: 'restores it', waiting: 'waits', stopped: 'stopped', '': 'starting' };

function hostOf(model, state, name, view, leader, now) {
  const h = { name, kind: 'host', tone: 'unknown', part: '', leader: name === leader, heard: heardOf(model, name, now), runs: '' };
  const owns = state.log?.owner === name && state.log.generation > 0;
  const by = state.view?.guest.primary?.backup === name && !model.isQuiet(state.view.host, now) ? state.view : null;
  if ((!view || model.isQuiet(name, now)) && by && ['protected', 'syncing'].includes(state.key)) {
    h.part = `${state.key === 'protected' ? 'stands by' : 'is being filled'}, says ${by.host}`;
    h.tone = state.tone;
    const ago = by.guest.primary.peer_age_ns;
    if (h.heard.tone !== 'bad' && ago !== undefined) {
      h.heard = { tone: 'good', text: `heard by ${by.host}` };
    }
    return h;
  }
  if ((!view || model.isQuiet(name, now)) && state.log?.fenced === name) {
    h.part = `${owns ? 'owner, ' : ''}known to be off`;
    h.tone = 'off';
    return h;
  }
  if (!view || model.isQuiet(name, now)) {
    h.part = owns ? 'owns it, by the log' : state.backup === name && state.log?.in_sync ? 'backup, by the log' : 'unknown';
    h.tone = view || model.peers === 'yes' ? 'bad' : 'unknown';
    if (state.key === 'asking' && owns && h.heard.tone === 'good') {
      h.heard = { tone: 'warn', text: h.heard.last };
    }
    return h;
  }
  const p = view.guest.primary;
  const b = view.guest.backup;
  if (p && (p.mode === 'yielded' || p.mode === 'ended')) {
    h.part = 'superseded';
    h.tone = 'warn';
    h.runs = 'stands still';
  } else if (p) {
    h.part = 'owner';
    h.tone = p.running || state.tone === 'good' ? 'good' : 'warn';
    h.runs = p.lease_left_ns === 0 && !p.running ? 'stands still' : 'runs';
  } else if (b) {
    h.part = { fed: b.in_sync ? 'stands by' : 'is being filled', asking: 'asks for the guest' }[b.state] ?? 'backup, not fed';
    h.tone = b.in_sync ? 'good' : b.state === 'waiting' ? 'bad' : 'busy';
  } else {
    h.part = parts[view.guest.role] ?? view.guest.role;
    h.tone = view.guest.role === 'stopped' ? 'off' : 'busy';
  }
  if (b && b.state === 'waiting' && (state.log?.protection === 'paused' || state.log?.protection === 'off')) {
    h.part = state.log.protection === 'paused' ? 'keeps its image' : 'has no image';
    h.tone = 'off';
  }
  if (state.key === 'asking' && owns) { // what it said last may be over
    h.part = `owner; ${state.view.host} hears nothing of it`;
    h.tone = 'warn';
    h.runs = 'may run';
    h.heard = { tone: 'warn', text: h.heard.last };
  }
  if (view.guest.bubble) {
    h.part += ', and runs a bubble';
  }
  if (state.key === 'activating' && owns) {
    h.part = 'brings it up';
    h.tone = 'busy';
  }
  return h;
}

function witnessOf(model, name, leader, now) {
  const heard = heardOf(model, name, now);
  return { name, kind: 'witness', tone: heard.tone, part: 'witness', leader: name === leader, heard, runs: '' };
}

// heardOf is when a host was heard: by this page, else by the log's leader or
// whoever else tells. last is the same of one that may be lost.
function heardOf(model, name, now) {
  const h = model.hosts.get(name);
  if (h && h.heard !== null && (model.peers === 'yes' || name === model.self)) {
    return model.isQuiet(name, now)
      ? { tone: 'bad', text: `not heard for ${age(now - h.heard)}` }
      : { tone: 'good', text: 'answers', last: `heard ${age(now - h.heard)} ago` };
  }
  let best = null;
  for (const by of model.hosts.values()) {
    const v = by.cluster?.voters?.find((x) => x.host === name);
    if (v && v.heard_ns !== undefined && v.heard_ns !== null && by.name !== name) {
      const ago = v.heard_ns / 1e6 + (now - by.seen);
      if (best === null || ago < best.ago) {
        best = { ago, by: by.name };
      }
    }
  }
  if (best === null) {
    return { tone: model.peers === 'yes' ? 'bad' : 'unknown', text: model.peers === 'yes' ? 'does not answer' : 'unknown' };
  }
  const last = `heard ${age(best.ago)} ago by ${best.by}`;
  return best.ago < 5000 ? { tone: 'good', text: `heard by ${best.by}`, last } : { tone: 'unknown', text: last };
}

// checkpoints is the link between the pair: which way, and whether they flow.
function checkpoints(model, state, [a, b], now) {
  const owner = state.log?.owner === b ? b : a;
  const other = owner === a ? b : a;
  const link = { from: owner, to: other, kind: 'checkpoints', tone: 'unknown', flows: false, text: 'unknown' };
  const view = model.views(state.guest).find((v) => v.host === owner);
  if (!view || model.isQuiet(owner, now)) {
    const from = model.views(state.guest).find((v) => v.host === other)?.guest.backup;
    if (from && !model.isQuiet(other, now)) {
      link.tone = from.state === 'fed' ? 'good' : 'bad';
      link.flows = from.state === 'fed';
      link.text = from.state === 'fed' ? `checkpoints, epoch ${from.epoch}` : `${other} is not fed`;
    }
    return link;
  }
  if (state.key === 'asking') {
    return { ...link, tone: 'bad', text: `silent, says ${state.view.host}` };
  }
  const p = view.guest.primary;
  if (!p) {
    link.text = 'nothing flows';
    link.tone = 'off';
    return link;
  }
  if (!p.linked) {
    const meant = state.key === 'paused' || state.key === 'off';
    return { ...link, tone: meant ? 'off' : 'bad', text: meant ? 'nothing flows, as told' : 'silent: no session' };
  }
  if (state.key === 'protected') {
    return { ...link, tone: 'good', flows: true, text: `checkpoints, epoch ${p.epoch}` };
  }
  const sync = p.mode === 'syncing' || p.mode === 'entering';
  return { ...link, tone: sync ? 'busy' : 'warn', flows: sync, text: sync ? 'memory is copied' : 'connected' };
}

// logLink is the link of a host and the witness: only who leads, or is led, has
// something to say.
function logLink(model, host, witness, leader, now) {
  const link = { from: host, to: witness, kind: 'log', tone: 'unknown', flows: false, text: 'unknown' };
  if (leader === '') {
    const ago = heardBy(model, host, witness, now) ?? heardBy(model, witness, host, now);
    return ago !== null && ago > silent ? { ...link, tone: 'bad', text: `silent for ${age(ago)}` } : link;
  }
  if (leader !== host && leader !== witness) {
    return { ...link, text: 'little to say' };
  }
  const follower = leader === host ? witness : host;
  const at = [];
  const led = model.hosts.get(follower);
  if (led?.cluster && led.cluster.leader === leader && led.cluster.contact_ns !== undefined && !model.isQuiet(follower, now)) {
    at.push(led.cluster.contact_ns / 1e6 + (now - led.seen));
  }
  const heard = heardBy(model, leader, follower, now);
  if (heard !== null) {
    at.push(heard);
  }
  if (at.length === 0) {
    return link;
  }
  const ago = Math.min(...at);
  return ago < silent ? { ...link, tone: 'good', text: 'log' } : { ...link, tone: 'bad', text: `silent for ${age(ago)}` };
}

// heardBy is how long ago one voter heard another, in milliseconds; null if that
// is not known.
function heardBy(model, by, voter, now) {
  const h = model.hosts.get(by);
  const v = h?.cluster?.voters?.find((x) => x.host === voter);
  return v && v.heard_ns !== undefined && v.heard_ns !== null && !model.isQuiet(by, now) ? v.heard_ns / 1e6 + (now - h.seen) : null;
}

function heldOf(state, model, now) {
  const p = state.view?.guest.primary;
  if (!p || model.isQuiet(state.view.host, now)) {
    return [];
  }
  const writes = state.view.guest.disks?.held_bytes ?? 0;
  return [`held: ${plural(p.held_frames, 'frame')}, ${bytes(p.held_bytes)}`, ...(state.view.guest.disks ? [`and ${bytes(writes)} of disk writes`] : [])];
}

function wordsOf(hosts, links, held, leader) {
  const out = hosts.map((h) => `${h.name}: ${h.part}${h.runs ? `, the guest ${h.runs} there` : ''}; ${h.heard.text}.`);
  for (const l of links) {
    out.push(l.kind === 'checkpoints'
      ? `From ${l.from} to ${l.to}: ${l.text}.`
      : `Between ${l.from} and ${l.to}: ${l.text}.`);
  }
  if (held.length > 0) {
    out.push(`Output ${held.join(' ')}.`);
  }
  out.push(leader ? `${leader} leads the ownership log.` : 'No leader of the ownership log is known.');
  return out;
}

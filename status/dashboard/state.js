// What state a guest is in, as far as all that is known tells. Pure: the same
// knowledge at the same time is the same state. The words for it are words.js's.

import { quiet } from './model.js';

// judge returns
//
//	key       the state: see the cases below, and words.js
//	tone      good, busy, warn, bad, off, unknown
//	view      the view that the state rests on, null if there is none
//	log       the newest state of the guest in the log that anybody told
//	owner, backup   hosts; '' if unknown
//	progress  0 to 1 while it is being synchronised, else null
//	standby   the view of the backup, where the owner is not heard and the backup is
//	silentFor milliseconds since the owner was heard, where it is not heard
//	leaderless   why the ownership log has no majority, '' if it has one or
//	          nobody can tell
export function judge(model, name, now) {
  const views = model.views(name);
  const log = newestLog(views);
  const leaderless = noLeader(model, now);
  const base = { guest: name, view: null, log, owner: log?.owner ?? '', backup: '', progress: null, silentFor: null, standby: null, leaderless, why: '' };
  if (!log) {
    return { ...base, key: 'unknown', tone: 'unknown' };
  }
  base.backup = backupOf(model, name, log, views);
  const fresh = views.filter((v) => !model.isQuiet(v.host, now));
  return { ...base, ...(ofLog(log, fresh) ?? ofOwner(model, log, views, fresh, now)) };
}

// newestLog is the newest of what the hosts know of the log's state of a guest.
export function newestLog(views) {
  let newest = null;
  for (const { guest: { log } } of views) {
    if (!newest || log.generation > newest.generation || (log.generation === newest.generation && log.revision > newest.revision)) {
      newest = log;
    }
  }
  return newest;
}

function backupOf(model, name, log, views) {
  const primary = views.find((v) => v.host === log.owner)?.guest.primary;
  if (primary?.backup) {
    return primary.backup;
  }
  return model.pair(name).find((h) => h !== log.owner) ?? '';
}

// ofLog is what the log alone says: of a guest that nobody runs, or that is on
// its way from one host to the other.
function ofLog(log, fresh) {
  const asking = fresh.find((v) => v.guest.backup?.state === 'asking');
  const leaving = fresh.find((v) => v.guest.primary?.mode === 'leaving' && v.host === log.owner);
  if (log.generation === 0) {
    const booting = fresh.find((v) => v.guest.role === 'booting');
    return booting ? { key: 'booting', tone: 'busy', view: booting } : { key: 'never', tone: 'off' };
  }
  if (log.phase === 'activating') {
    return { key: 'activating', tone: 'bad', view: fresh.find((v) => v.host === log.owner) ?? null };
  }
  if (log.phase === 'surrendered') {
    return { key: 'surrendered', tone: 'busy', view: fresh.find((v) => v.host === log.owner) ?? null };
  }
  if (log.desired === 'stopped') {
    return leaving ? { key: 'stopping', tone: 'busy', view: leaving } : { key: 'stopped', tone: 'off' };
  }
  if (leaving) {
    return { key: 'leaving', tone: 'busy', view: leaving };
  }
  if (asking) {
    return { key: 'asking', tone: 'bad', view: asking };
  }
  return null;
}

// ofOwner is what the owner says of itself, if it says anything.
function ofOwner(model, log, views, fresh, now) {
  const view = views.find((v) => v.host === log.owner);
  if (!view || !fresh.includes(view)) {
    return notHeard(model, log, view, fresh, now);
  }
  const { guest } = view;
  const p = guest.primary;
  if (!p && (guest.log.generation < log.generation || guest.log.revision < log.revision)) {
    return { key: 'arriving', tone: 'busy', view }; // it does not know yet that it is the owner
  }
  if (!p) {
    const busy = ['booting', 'recovering', 'restoring', 'starting', ''].includes(guest.role);
    return { key: busy ? guest.role || 'starting' : 'no-primary', tone: busy ? 'busy' : 'bad', view };
  }
  if (p.mode === 'yielded' || p.mode === 'ended') {
    return { key: 'superseded', tone: 'warn', view };
  }
  if (p.lease_left_ns === 0 && !p.running) {
    return { key: 'no-lease', tone: 'bad', view };
  }
  if (p.mode === 'protected') {
    return p.linked && guest.protected === 'yes' ? { key: 'protected', tone: 'good', view } : { key: 'waiting', tone: 'bad', view };
  }
  const switched = log.protection === 'paused' || log.protection === 'off';
  if (switched) {
    return { key: log.protection, tone: 'warn', view };
  }
  if (p.mode === 'syncing' || p.mode === 'entering') {
    return { key: 'syncing', tone: 'busy', view, progress: p.pages > 0 && p.mode === 'syncing' ? 1 - Math.min(1, p.remaining / p.pages) : null };
  }
  if (p.mode === 'detaching') {
    return { key: 'detaching', tone: 'bad', view };
  }
  return { key: 'alone', tone: 'bad', view, why: reasonOf(model, guest.name) };
}

function notHeard(model, log, view, fresh, now) {
  const standby = fresh.find((v) => v.guest.backup) ?? null;
  if (view) {
    return { key: 'owner-silent', tone: 'bad', view, standby, silentFor: view.heard === null ? null : now - view.heard, why: view.trouble };
  }
  return standby ? { key: 'backup-only', tone: 'unknown', view: standby, standby } : { key: 'unknown', tone: 'unknown' };
}

// reasonOf is the reason for which a guest is not protected, of the newest event
// that tells one; '' if none does.
function reasonOf(model, name) {
  for (const e of model.events) {
    if (e.guest === name && e.kind === 'protected') {
      return '';
    }
    if (e.guest === name && e.kind === 'unprotected') {
      return e.reason ?? '';
    }
  }
  return '';
}

// noLeader tells why there is no majority: nobody who is heard knows a leader
// that it has heard within a lease.
function noLeader(model, now) {
  let why = '';
  for (const h of model.hosts.values()) {
    if (!h.cluster || now - h.seen > quiet || model.isQuiet(h.name, now)) {
      continue;
    }
    const { cluster } = h;
    const lease = h.report?.lease_ns ?? 0;
    const old = cluster.contact_ns === undefined || cluster.contact_ns === null || (lease > 0 && cluster.contact_ns > lease);
    if (cluster.leader !== '' && !old) {
      return '';
    }
    why ||= cluster.leader === '' ? `${h.name} knows no leader of the ownership log` : `${h.name} takes ${cluster.leader} for the leader of the ownership log, and does not hear from it`;
  }
  return why;
}

// lastMove is how the guest came to the host that runs it: the newest takeover in
// the record, null if there is none. It is {host, from, at, planned, outage}, with
// outage in nanoseconds from the request to the first output, null if not known.
export function lastMove(model, name, owner) {
  const mine = model.events.filter((e) => e.guest === name && e.host === owner);
  const activated = mine.find((e) => e.kind === 'activated');
  if (!activated) {
    return null;
  }
  const before = mine.filter((e) => e.at <= activated.at);
  const asked = before.find((e) => e.kind === 'takeover-asked');
  const out = mine.find((e) => e.kind === 'first-output' && e.at >= activated.at);
  const exact = asked && out && asked.boot_id === out.boot_id && asked.boot_id;
  return {
    host: owner, from: asked?.peer ?? '', at: activated.at, planned: asked ? asked.reason === 'surrendered' : null,
    outage: exact ? out.boot_ns - asked.boot_ns : null,
  };
}

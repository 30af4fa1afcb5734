// The state of a guest, from what several hosts say, or do not say.
const { Model, quiet } = await import('/ui/model.js');
const { judge, lastMove } = await import('/ui/state.js');
const { describe } = await import('/ui/words.js');
const { scene } = await import('/ui/scene.js');

const log = (over = {}) => ({ generation: 1, revision: 3, owner: 'a', phase: 'active', desired: 'running', in_sync: true, backup: { host: 'b' }, previous: '', ...over });
const primary = (over = {}) => ({
  mode: 'protected', mode_for_ns: 1e9, linked: true, backup: 'b', epoch: 9, epoch_age_ns: 12e6, remaining: 0, pages: 100, held_frames: 0, held_bytes: 0,
  lease_left_ns: 5e8, running: true, generation: 1, pause: {}, commit_lag: {}, totals: {}, ...over,
});
const owner = (over = {}, l = {}) => ({ name: 'web', host: 'a', role: 'primary', protected: (over.mode ?? 'protected') === 'protected' && over.linked !== false ? 'yes' : 'no', log: log(l), primary: primary(over) });
const backup = (over = {}, l = {}) => ({ name: 'web', host: 'b', role: 'backup', protected: 'unknown', log: log(l), backup: { state: 'fed', epoch: 9, epoch_age_ns: 3e7, in_sync: true, ...over } });
const cluster = (leader, over = {}) => ({ leader, term: 2, contact_ns: 1e6, voters: [{ host: 'a' }, { host: 'b' }, { host: 'w', witness: true, heard_ns: 1e6 }], ...over });

function know(said, { self = 'b', peers = 'yes', at = 1000, leader = 'w', over = {} } = {}) {
  const m = new Model();
  m.self = self;
  m.peers = peers;
  for (const [host, guest] of Object.entries(said)) {
    m.reported(host, { host, version: '1', lease_ns: 1e9, guests: guest ? [guest] : [], exits: {} }, at);
    m.clustered(host, cluster(leader, over), at);
  }
  return m;
}
const state = (m, now = 1000) => judge(m, 'web', now);
const head = (m, now = 1000) => describe(m, state(m, now), now).head;

for (const [what, said, key] of [
  ['protected', { a: owner(), b: backup(), w: null }, 'protected'],
  ['the log is ahead of the owner', { a: owner(), b: backup({}, { revision: 5, phase: 'activating', owner: 'b', generation: 2 }) }, 'activating'],
  ['an old owner that came back', { a: owner({ mode: 'yielded', running: false, lease_left_ns: 0 }), b: owner({ backup: 'a' }, { generation: 2, owner: 'b' }) }, 'protected'],
  ['paused by the operator', { a: owner({ mode: 'alone', linked: false }, { protection: 'paused', in_sync: false }) }, 'paused'],
  ['protection off', { a: owner({ mode: 'alone', linked: false }, { protection: 'off', in_sync: false }) }, 'off'],
  ['on its way to being paused', { a: owner({ mode: 'detaching' }, { protection: 'paused' }) }, 'paused'],
  ['surrendered', { a: owner({ mode: 'leaving' }, { phase: 'surrendered' }), b: backup() }, 'surrendered'],
  ['leaving', { a: owner({ mode: 'leaving' }), b: backup() }, 'leaving'],
  ['being stopped', { a: owner({ mode: 'leaving' }, { desired: 'stopped' }) }, 'stopping'],
  ['entering', { a: owner({ mode: 'entering' }) }, 'syncing'],
  ['never started', { a: { name: 'web', role: 'waiting', protected: 'unknown', log: log({ generation: 0, owner: '' }) } }, 'never'],
  ['restoring', { a: { name: 'web', role: 'restoring', protected: 'unknown', log: log() } }, 'restoring'],
  ['an owner without a primary', { a: { name: 'web', role: 'stopped', protected: 'unknown', log: log() } }, 'no-primary'],
  ['an owner that does not know it yet', { a: { ...backup(), host: 'a' }, b: owner({ mode: 'ended' }, { generation: 2 }) }, 'arriving'],
  ['only the backup is heard', { b: backup() }, 'backup-only'],
  ['nobody knows of it', { w: null }, 'unknown'],
]) {
  same(state(know(said)).key, key, what);
  ok(!/undefined|null|NaN|\[object/.test(JSON.stringify(Object.values(describe(know(said), state(know(said)), 1000)))), `the words of: ${what}`);
  ok(!/undefined|NaN|\[object/.test(scene(know(said), state(know(said)), 1000).words.join()), `the picture of: ${what}`);
}
same(head(know({ a: owner(), b: backup(), w: null })), 'web is protected: runs on a, b stands by, 12 ms behind.', 'the first sentence');
ok(head(know({ a: owner({ mode: 'alone' }, { protection: 'paused' }) })).includes('an operator paused its protection'), 'who paused it');

// What was said grows old; the state never stays the good one that it was.
const m = know({ a: owner(), b: backup(), w: null });
same([state(m, 1000 + quiet).key, state(m, 1001 + quiet).key], ['protected', 'owner-silent'], 'a report grows old');
m.silent('a', 'host a does not answer');
same(state(m).key, 'owner-silent', 'an owner that does not answer');
m.alive('a', 1000);
same(state(m).key, 'protected', 'and answers again');
const half = know({ a: owner(), b: backup(), w: null });
half.alive('b', 90_000);
same(state(half, 90_000).key, 'owner-silent', 'the owner alone is old');

// Majority: one host that hears the leader is enough; old words count for nothing.
same(state(know({ a: owner(), b: backup() }, { leader: '' })).leaderless, 'a knows no leader of the ownership log', 'no leader');
same(state(know({ a: owner() }, { over: { contact_ns: 2e9 } })).leaderless, 'a takes w for the leader of the ownership log, and does not hear from it', 'a leader that is not heard');
same(state(know({ a: owner() }, { over: { contact_ns: undefined } })).leaderless !== '', true, 'a leader that never was heard');
const split = know({ a: owner() }, { leader: '' });
split.clustered('w', cluster('w'), 1000);
same(state(split).leaderless, '', 'somebody hears it');
same(state(know({ a: owner() }, { leader: '' }), 60_000).leaderless, '', 'nobody can tell');

// The picture: a link that is silent, and one of which nothing is known.
const pic = (said, o) => { const k = know(said, o); return scene(k, judge(k, 'web', 1000), 1000); };
same(pic({ a: owner(), b: backup(), w: null }).hosts.map((h) => `${h.name} ${h.part} ${h.tone}`), ['a owner good', 'b stands by good', 'w witness good'], 'the boxes');
same(pic({ a: owner({ linked: false }), b: backup() }).links[0].tone, 'bad', 'no session');
same(pic({ a: owner({}, { owner: 'a' }), b: backup() }).links[0], { from: 'a', to: 'b', kind: 'checkpoints', tone: 'good', flows: true, text: 'checkpoints, epoch 9' }, 'which way');
same(pic({ b: { ...owner({ backup: 'a' }, { owner: 'b', generation: 2 }), host: 'b' }, a: backup({}, { owner: 'b', generation: 2 }) }).links[0].from, 'b', 'the other way round');
same(pic({ b: backup() }, { peers: 'no' }).hosts[0].part, 'owns it, by the log', 'a host that cannot be asked');
same(pic({ a: owner() }, { peers: 'no', self: 'a' }).hosts[1].part, 'stands by, says a', 'a backup that only its primary tells of');

// Events: in whatever order, once each, bounded; how the guest came here.
const e = (seq, kind, over = {}) => ({ seq, kind, host: 'b', guest: 'web', time: new Date(1e12 + seq * 1000).toISOString(), boot_id: 'x', boot_ns: seq * 1e9, ...over });
const r = new Model();
r.happened([e(3, 'activated'), e(1, 'takeover-asked', { peer: 'a', reason: 'owner-silent' }), e(3, 'activated')]);
r.happened([e(4, 'first-output')]);
same(r.events.map((x) => x.seq), [4, 3, 1], 'events');
same(lastMove(r, 'web', 'b'), { host: 'b', from: 'a', at: 1e12 + 3000, planned: false, outage: 3e9 }, 'a takeover');
same(lastMove(r, 'web', 'a'), null, 'none');
r.happened(Array.from({ length: 3000 }, (_, i) => e(i + 10, 'problem')));
same([r.events.length, r.known.size], [500, 500], 'events are bounded');

// What comes of a guest whose owner is not heard, and what the picture says then.
const silentOwner = (log, heard = true) => {
  const k = know({ a: owner({}, log), b: backup(log.in_sync === false ? { state: 'waiting', in_sync: false } : {}, log), w: null });
  k.silent('a', 'no route');
  if (!heard) {
    k.silent('b', 'no route');
  }
  return k;
};
for (const [what, k, text] of [
  ['a backup in sync', silentOwner({}), 'b takes it over by itself'],
  ['paused', silentOwner({ protection: 'paused', in_sync: false }), 'its protection is paused'],
  ['out of sync', silentOwner({ in_sync: false }), 'no backup in sync'],
  ['nobody heard', silentOwner({}, false), 'Neither of its hosts'],
]) {
  const s = state(k);
  same(s.key, 'owner-silent', what);
  ok(describe(k, s, 1000).todo.includes(text), `${what}: ${describe(k, s, 1000).todo}`);
}
const asks = pic({ a: owner(), b: backup({ state: 'asking' }), w: null });
same([asks.hosts[0].part, asks.hosts[0].runs, asks.links[0].text], ['owner; b hears nothing of it', 'may run', 'silent, says b'], 'who asks hears nothing');
same([asks.hosts[0].heard, asks.hosts[1].heard.text], [{ tone: 'warn', text: 'heard under 1 s ago' }, 'answers'], 'nobody says of a host that may be lost that it answers');
same(pic({ b: backup({ state: 'asking' }) }, { peers: 'no', over: { voters: [{ host: 'a', heard_ns: 3e9 }] } }).hosts.find((h) => h.name === 'a').heard, { tone: 'warn', text: 'heard 3 s ago by b' }, 'nor where it cannot be asked');
const off = know({ a: owner(), b: backup({}, { fenced: 'a', revision: 4 }), w: null });
off.silent('a', 'no route');
same(scene(off, state(off), 1000).hosts[0].part, 'owner, known to be off', 'a host that is off');
const rest = pic({ a: owner({ mode: 'alone', linked: false }, { protection: 'paused', in_sync: false }), b: backup({ state: 'waiting', in_sync: false }, { protection: 'paused', in_sync: false }) });
same([rest.hosts[1].part, rest.hosts[1].tone], ['keeps its image', 'off'], 'a backup of a guest whose protection is paused');
throws(() => new Model().reported('b', { guests: 'x' }, 1), 'a report that is none');
throws(() => new Model().reported('b', null, 1), 'no report');
throws(() => new Model().reported('b', { guests: [{ name: 7 }] }, 1), 'a guest without a name');

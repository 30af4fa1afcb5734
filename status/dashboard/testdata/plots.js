// What the plots show, from counts to places.
const { steps, linear, path, area, stack, nearest, ticks } = await import('/ui/scale.js');
const { Samples, minutes, shown, span } = await import('/ui/samples.js');

for (const base of [1000, 1024]) {
  for (let e = -3; e < 15; e += 0.37) {
    const max = 10 ** e;
    const axis = steps(max, base);
    ok(axis[0] === 0 && axis.at(-1) >= max && axis.length >= 3 && axis.length <= 6, `steps(${max}, ${base}) = ${axis}`);
    ok(axis.every((v, i) => i === 0 || v > axis[i - 1]), `steps(${max}, ${base}) rise`);
  }
}
same(steps(0, 1000), [0, 1], 'steps of nothing');
same(steps(NaN, 1000), [0, 1], 'steps of what is none');
same(steps(5e6, 1000), [0, 1e6, 2e6, 3e6, 4e6, 5e6], 'steps');
same(steps(40 * 1024, 1024), [0, 10240, 20480, 30720, 40960], 'steps of bytes');
same(ticks(60_000, 6), [0, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000], 'ticks');
ok([60, 120, 180, 240, 300, 360, 420, 480, 540, 600].every((s) => { const t = ticks(s * 1000, 3); return t.length >= 2 && t.length <= 4; }), 'ticks of every span');
same(linear(0, 10, 100, 200)(5), 150, 'linear');
same(linear(3, 3, 100, 200)(3), 100, 'linear without length');
same(path([[0, 1], [1, 2], [2, null], [3, 4], [4, null]]), 'M0 1L1 2M3 4h1', 'a line with a gap');
same(area([[0, 1, 2], [1, 1, 3], [2, null, null], [3, 0, 1]]), 'M0 2L1 3L1 1L0 1Z', 'an area with a gap');
same([...stack([{ a: 1, b: 2 }, { a: null, b: 1 }], ['a', 'b']).values()], [[[0, 1], [null, null]], [[1, 3], [null, null]]], 'a stack');
const all = [1, 3, 7].map((at) => ({ at }));
same([-5, 1, 2, 2.1, 5.1, 99].map((at) => nearest(all, at)), [0, 0, 1, 1, 2, 2], 'nearest');
same(nearest([], 1), -1, 'nearest of none');

const totals = (n) => ({
  checkpoints: n, commits: n, pause_time_ns: n * 2e6, commit_lag_time_ns: n * 8e6, raw_bytes: n * 100 * 4096, wire_bytes: n * 10 * 4096,
  reference_pages: n * 30, copy_pages: n * 5, zero_pages: n * 10, same_pages: n * 15,
});
const view = (host, generation, n) => ({ host, guest: { primary: { generation, totals: totals(n), held_bytes: 7, held_frames: 1, pause: { samples: 0 }, commit_lag: { samples: 3, p99_ns: 9 } } } });
const s = new Samples();
s.add(view('a', 1, 100), 0, new Date(0));
same([s.all.length, s.all[0].pause, s.all[0].heldBytes, s.all[0].pauseP99, s.all[0].lagP99], [1, null, 7, null, 9], 'the first says nothing of what happened');
s.add(view('a', 1, 120), 1000, new Date(1000));
const page = 4096 * 20;
same([s.all[1].pause, s.all[1].epoch, s.all[1].lag, s.all[1].sent, s.all[1].disk, s.all[1].equal, s.all[1].zero, s.all[1].same, s.all[1].packed],
  [2e6, 50e6, 8e6, 10 * page, 30 * page, 5 * page, 10 * page, 15 * page, 30 * page], 'what happened in a second');
s.add(view('a', 1, 120), 1000, new Date(1000));
same(s.all.length, 2, 'the same report twice');
s.add(view('a', 1, 120), 2000, new Date(2000));
same([s.all[2].pause, s.all[2].sent], [null, 0], 'nothing happened');
for (const [what, next] of [['another host', view('b', 1, 130)], ['another generation', view('b', 2, 140)], ['counts that began anew', view('b', 2, 3)]]) {
  const before = s.all.length;
  s.add(next, s.all.at(-1).at + 1000, new Date(3000));
  same([s.all.length - before, s.all.at(-1).pause, s.all.at(-2).heldBytes], [2, null, null], `${what} is a gap`);
}
s.add({ host: 'b', guest: {} }, 9e5, new Date(0));
const last = s.all.at(-1).at;
s.add(view('b', 2, 9), last + span + 5000, new Date(0));
ok(s.all.every((x) => x.at >= last + 5000), 'what is older than the plot is forgotten');
same([shown([], 5), shown([{ at: 0 }], 61_000), shown([{ at: 0 }], 9e9)], [60_000, 120_000, span], 'how far back a plot goes');
same(minutes([{ at: 1000, wall: 1, x: 5 }, { at: 2000, wall: 2, x: 3 }, { at: 3000, wall: 3, x: null }, { at: 61_000, wall: 4, x: 1 }], ['x'], 61_500),
  [{ minute: 0, wall: 2, values: [{ median: 3, max: 3 }] }, { minute: 1, wall: 1, values: [{ median: 5, max: 5 }] }], 'a table of minutes');

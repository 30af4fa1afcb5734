// What the plots show, from counts to places.
const { steps, linear, path, area, stack, nearest, ticks } = await import('/ui/scale.js');
const { Samples, bands, columns, rings, rows, shown } = await import('/ui/samples.js');

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
ok([60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 900, 3600, 4 * 3600, 6 * 3600].every((s) => { const t = ticks(s * 1000, 3); return t.length >= 2 && t.length <= 4; }), 'ticks of every span');
same(linear(0, 10, 100, 200)(5), 150, 'linear');
same(linear(3, 3, 100, 200)(3), 100, 'linear without length');
same(path([[0, 1], [1, 2], [2, null], [3, 4], [4, null]]), 'M0 1L1 2M3 4h1', 'a line with a gap');
same(area([[0, 1, 2], [1, 1, 3], [2, null, null], [3, 0, 1]]), 'M0 2L1 3L1 1L0 1Z', 'an area with a gap');
same([...stack([{ a: 1, b: 2 }, { a: null, b: 1 }], ['a', 'b']).values()], [[[0, 1], [null, null]], [[1, 3], [null, null]]], 'a stack');
const all = [1, 3, 7].map((at) => ({ at }));
same([-5, 1, 2, 2.1, 5.1, 99].map((at) => nearest(all, at)), [0, 0, 1, 1, 2, 2], 'nearest');
same(nearest([], 1), -1, 'nearest of none');

// What hosts answer: each value is its age, if it is not said otherwise.
const series = (ages, over = {}) => ({ next: `x-${ages.length}`, whole: true, age_ms: ages, generation: ages.map(() => 1), values: Object.fromEntries(columns.map((c) => [c, ages])), ...over });
const s = new Samples(rings.fine);
same([s.next('a'), s.all], ['', []], 'nothing is known');
s.took('a', series([2000, 1000, 0]), 10_000, 5e6);
same([s.next('a'), s.all.map((x) => [x.at, x.wall.getTime(), x.pause_ns])], ['x-3', [[8000, 4_998_000, 2000], [9000, 4_999_000, 1000], [10_000, 5e6, 0]]], 'the past of a host');
s.took('a', series([0], { whole: false }), 11_000, 5_001_000);
same(s.all.map((x) => x.at), [8000, 9000, 10_000, 11_000], 'and what comes on top of it');
s.took('b', series([9000, 0], { generation: [0, 2] }), 13_000, 5_003_000);
same(s.all.map((x) => [x.at, x.generation, x.pause_ns]), [[8000, 1, 2000], [9000, 1, 1000], [10_000, 1, 0], [11_000, 1, 0], [12_000, 0, null], [13_000, 2, 0]], 'another host runs it: a gap');
s.took('a', series([0], { whole: false }), 14_000, 5_004_000);
same(s.all.map((x) => x.at), [8000, 9000, 10_000, 11_000, 12_000, 13_000], 'a former owner says nothing of what is now');
s.took('a', series([1000, 500, 0], { generation: [3, 0, 3] }), 16_000, 5_006_000);
same(s.all.map((x) => [x.at, x.generation]), [[8000, 1], [9000, 1], [10_000, 1], [11_000, 1], [12_000, 0], [13_000, 2], [14_000, 0], [15_000, 3], [15_500, 0], [16_000, 3]],
  'a daemon began anew, and did not look for a while: what the former one said stays');
s.took('b', series([]), 16_000 + rings.fine.span - 500, 0);
same(s.all.map((x) => x.at), [16_000], 'what is older than the plot is forgotten');
for (const bad of [{}, { age_ms: 'x' }, { age_ms: [NaN, null, 'x', {}] }, series([5], { values: null }), series([5], { values: { pause_ns: ['<b>', {}] } }), series([5], { generation: null }), series([5], { next: {} }), { whole: true, age_ms: Array(9999).fill(1) }]) {
  const hostile = new Samples(rings.fine);
  hostile.took('a', bad, 1000, 0);
  ok(hostile.all.length <= 5000 && hostile.all.every((x) => columns.every((c) => x[c] === null || Number.isFinite(x[c]))) && typeof hostile.next('a') === 'string', `a host that says ${JSON.stringify(bad)?.slice(0, 60)}`);
}
same([shown([], 5, 9e9), shown([{ at: 0 }], 61_000, 9e9), shown([{ at: 0 }], 9e9, 900_000)], [60_000, 120_000, 900_000], 'how far back a plot goes');
same(bands([{ at: 1, protected: 1 }, { at: 2, protected: 0 }, { at: 3, protected: 0 }, { at: 4, protected: 1 }, { at: 5, protected: 0 }, { at: 6, protected: null }, { at: 7, protected: 0 }]), [[2, 4], [5, 5], [7, 7]], 'when it was not protected');
same(rows([{ at: 1000, wall: 1, x: 5 }, { at: 2000, wall: 2, x: 3 }, { at: 3000, wall: 3, x: null }, { at: 61_000, wall: 4, x: 1 }], ['x'], 61_500, rings.fine),
  [{ part: 0, wall: 2, values: [{ median: 3, max: 3 }] }, { part: 1, wall: 1, values: [{ median: 5, max: 5 }] }], 'a table of minutes');

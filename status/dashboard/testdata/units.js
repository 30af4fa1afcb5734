// Numbers for people, and the format of the stream.
const { duration, age, bytes, rate, count, percent, plural } = await import('/ui/units.js');
const { parser } = await import('/ui/sse.js');

for (const [ns, want] of [
  [0, '0 s'], [999, '999 ns'], [170_000, '170 µs'], [1_100_000, '1.1 ms'], [38_270_000, '38.3 ms'], [12e6, '12 ms'], [0.999e9, '999 ms'], [1e9, '1 s'], [1.25e9, '1.3 s'],
  [9.96e9, '10 s'], [59.4e9, '59 s'], [60e9, '1 min'], [95e9, '1 min 35 s'], [3600e9, '1 h'], [7380e9, '2 h 3 min'], [90000e9, '1 d 1 h'], [-5e6, '-5 ms'],
  [null, 'unknown'], [undefined, 'unknown'], [NaN, 'unknown'],
]) {
  same(duration(ns), want, `duration(${ns})`);
}
for (const [ms, want] of [[0, 'under 1 s'], [999, 'under 1 s'], [1999, '1 s'], [125_000, '2 min 5 s'], [null, 'unknown']]) {
  same(age(ms), want, `age(${ms})`);
}
for (const [n, want] of [[0, '0 B'], [1023, '1023 B'], [1024, '1 KiB'], [1536, '1.5 KiB'], [150 * 1024 + 1, '150 KiB'], [2.7 * 1024 ** 2, '2.7 MiB'], [-1, '0 B'], [2 ** 60, '1024 PiB'], [null, 'unknown']]) {
  same(bytes(n), want, `bytes(${n})`);
}
same(rate(1024), '1 KiB/s', 'rate');
same(rate(null), 'unknown', 'rate of nothing');
same(count(1234567), '1\u202f234\u202f567', 'count');
same(count(0), '0', 'count of none');
same(percent(0.999), '99%', 'percent never says all before all is done');
same(percent(1), '100%', 'percent');
same(plural(1, 'frame'), '1 frame', 'one');
same(plural(0, 'frame'), '0 frames', 'none');

// However the stream is cut, the same events come of it.
const text = '\uFEFFretry: 2000\n\nevent: status\ndata: {"a":\r\ndata:1}\n\n: still here\n\nid: 17\nevent: log\ndata: x\n\nevent: nothing\n\ndata\n\nid: a\0b\ndata: y\n\n';
const want = [{ kind: 'status', id: '', data: '{"a":\n1}' }, { kind: 'log', id: '17', data: 'x' }, { kind: 'message', id: '17', data: '' }, { kind: 'message', id: '17', data: 'y' }];
for (let size = 1; size <= text.length; size++) {
  const got = [];
  const take = parser((e) => got.push(e));
  for (let i = 0; i < text.length; i += size) {
    take(text.slice(i, i + size));
  }
  same(got, want, `in pieces of ${size}`);
}
const endless = parser(() => {});
throws(() => { for (let i = 0; i < 20; i++) { endless('x'.repeat(1 << 20)); } }, 'an endless line');

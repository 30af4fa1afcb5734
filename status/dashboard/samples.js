// What the plots show: the samples that the hosts keep of a guest's past (GET
// /api/v1/guests/NAME/samples), of all hosts together. Pure.

// rings are what can be shown: how far back, how far apart the samples are, and
// how much a row of the table sums up; all in milliseconds.
export const rings = {
  fine: { span: 15 * 60_000, step: 1000, row: 60_000 },
  coarse: { span: 6 * 3600_000, step: 10_000, row: 20 * 60_000 },
};

// columns are the values that are read of a sample: durations in nanoseconds,
// bytes, bytes a second.
export const columns = [
  'protected', 'pause_ns', 'pause_p99_ns', 'epoch_ns', 'lag_ns', 'lag_p99_ns', 'held_bytes', 'held_write_bytes', 'sent_bytes_per_second',
  'on_disk_bytes_per_second', 'equal_bytes_per_second', 'zero_bytes_per_second', 'unchanged_bytes_per_second', 'packed_bytes_per_second',
];

// most bounds what is taken of one answer.
const most = 5000;

const nothing = Object.fromEntries(columns.map((c) => [c, null]));

// Samples are those of one guest and one ring. all is the oldest first; each has
// at, in milliseconds of the caller's clock, and wall, the time of day; a value
// that is not known is null, and nothing is drawn there.
export class Samples {
  constructor(ring) {
    this.span = ring.span;
    this.hosts = new Map(); // host → {rows, next, run}
    this.all = [];
  }

  // next is what to ask a host for, '' for all.
  next(host) {
    return this.hosts.get(host)?.next ?? '';
  }

  // took takes a host's answer that came at a time.
  took(host, series, at, wall) {
    const ages = Array.isArray(series.age_ms) ? series.age_ms.slice(0, most) : [];
    let h = this.hosts.get(host);
    if (!h || series.whole) {
      // A daemon that began anew knows nothing of what the one before it said.
      const since = at - ages.filter(Number.isFinite).reduce((a, b) => Math.max(a, b), 0);
      h = { rows: h?.rows.filter((r) => r.at < since) ?? [], next: '', run: (h?.run ?? 0) + 1 };
      this.hosts.set(host, h);
    }
    h.next = typeof series.next === 'string' ? series.next : '';
    ages.forEach((age, i) => {
      if (!Number.isFinite(age)) {
        return;
      }
      const generation = Number(series.generation?.[i]) || 0;
      if (generation === 0) {
        h.run++; // a gap
        return;
      }
      const row = { at: at - age, wall: new Date(wall - age), generation, run: `${h.run} ${host}` };
      for (const c of columns) {
        const v = series.values?.[c]?.[i];
        row[c] = Number.isFinite(v) ? v : null;
      }
      h.rows.push(row);
    });
    for (const one of this.hosts.values()) {
      one.rows = one.rows.filter((r) => r.at >= at - this.span).slice(-most);
    }
    this.all = merge([...this.hosts.values()].flatMap((one) => one.rows));
  }
}

// merge brings the samples of all hosts in order. Where two hosts say that they run
// the guest, the later generation counts. Between two that are not neighbours is one
// of which nothing is known.
function merge(rows) {
  const all = [];
  let before = null;
  for (const r of rows.sort((a, b) => a.at - b.at)) {
    if (before && r.generation < before.generation) {
      continue;
    }
    if (before && before.run !== r.run) {
      all.push({ at: (before.at + r.at) / 2, wall: new Date((before.wall.getTime() + r.wall.getTime()) / 2), generation: 0, run: '', ...nothing });
    }
    all.push(r);
    before = r;
  }
  return all;
}

// shown is how far back a plot goes: a whole number of minutes that holds all
// samples.
export function shown(samples, now, span) {
  const first = samples.length > 0 ? now - samples[0].at : 0;
  return Math.min(span, Math.max(60_000, Math.ceil(first / 60_000) * 60_000));
}

// bands are the times [from, to] of which the samples say that the guest was not
// protected.
export function bands(samples) {
  const out = [];
  let open = null;
  for (const s of samples) {
    if (s.protected === 0) {
      open ??= [s.at, s.at];
      open[1] = s.at;
      continue;
    }
    if (open) {
      if (s.protected !== null) {
        open[1] = s.at;
      }
      out.push(open);
      open = null;
    }
  }
  if (open) {
    out.push(open);
  }
  return out;
}

// rows sums samples up for a table: for each part of the time before now, the
// newest first, the median and the largest of each key; null where there is none.
export function rows(samples, keys, now, { span, row }) {
  const out = [];
  for (let m = 0; m < span / row; m++) {
    const from = now - (m + 1) * row;
    const part = samples.filter((s) => s.at > from && s.at <= from + row);
    if (part.length === 0) {
      continue;
    }
    const values = keys.map((key) => {
      const v = part.map((s) => s[key]).filter((x) => x !== null).sort((a, b) => a - b);
      return v.length === 0 ? null : { median: v[Math.floor(v.length / 2)], max: v[v.length - 1] };
    });
    out.push({ part: m, wall: part[0].wall, values });
  }
  return out;
}

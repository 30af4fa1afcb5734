// What the plots show: the counts of a guest's primary, turned into what happened
// between two reports. Pure.

export const span = 10 * 60 * 1000; // milliseconds that are shown
const page = 4096;

// longest is how far apart two reports may be to count as neighbours. An
// unchanged report is not sent for 30 s.
const longest = 35_000;

// Samples are those of one guest, the oldest first. Each has at, in milliseconds
// of the caller's clock, and wall, the time of day; a value that is not known is
// null, and nothing is drawn there.
export class Samples {
  constructor() {
    this.all = [];
    this.last = null;
  }

  // add takes a view of the guest by its owner (model.js) that came at a time.
  add({ host, guest }, at, wall) {
    const p = guest.primary;
    if (!p || (this.last && this.last.at === at)) {
      return;
    }
    const now = { at, host, generation: p.generation, totals: p.totals };
    const before = this.last;
    this.last = now;
    const held = { heldBytes: p.held_bytes, heldFrames: p.held_frames, heldWrites: guest.disks?.held_bytes ?? null };
    const comparable = before && before.host === host && before.generation === p.generation && at - before.at <= longest &&
      p.totals.checkpoints >= before.totals.checkpoints;
    if (before && !comparable) {
      this.all.push({ at: (before.at + at) / 2, wall, ...nothing });
    }
    this.all.push({ at, wall, ...nothing, ...(comparable ? between(before, now) : {}), ...held, pauseP99: of(p.pause), lagP99: of(p.commit_lag) });
    while (this.all.length > 0 && this.all[0].at < at - span) {
      this.all.shift();
    }
  }
}

const nothing = {
  pause: null, pauseP99: null, epoch: null, lag: null, lagP99: null, heldBytes: null, heldFrames: null, heldWrites: null,
  sent: null, disk: null, equal: null, zero: null, same: null, packed: null,
};

function of(percentiles) {
  return percentiles?.samples > 0 ? percentiles.p99_ns : null;
}

// between returns what happened between two reports: durations in nanoseconds,
// bytes a second.
function between(a, b) {
  const seconds = (b.at - a.at) / 1000;
  const d = (key) => b.totals[key] - a.totals[key];
  const checkpoints = d('checkpoints');
  const commits = d('commits');
  const rate = (n) => Math.max(0, n) / seconds;
  const raw = d('raw_bytes');
  const wire = d('wire_bytes');
  const left = {
    disk: d('reference_pages') * page,
    equal: d('copy_pages') * page,
    zero: d('zero_pages') * page,
    same: d('same_pages') * page,
  };
  return {
    pause: checkpoints > 0 ? d('pause_time_ns') / checkpoints : null,
    epoch: checkpoints > 0 ? (b.at - a.at) * 1e6 / checkpoints : null,
    lag: commits > 0 ? d('commit_lag_time_ns') / commits : null,
    sent: rate(wire),
    disk: rate(left.disk), equal: rate(left.equal), zero: rate(left.zero), same: rate(left.same),
    // What is left of the pages that travelled: differences and compression.
    packed: rate(raw - wire - left.disk - left.equal - left.zero - left.same),
  };
}

// shown is how far back a plot goes: a whole number of minutes that holds all
// samples.
export function shown(samples, now) {
  const first = samples.length > 0 ? now - samples[0].at : 0;
  return Math.min(span, Math.max(60_000, Math.ceil(first / 60_000) * 60_000));
}

// minutes sums samples up for a table: for each minute before now, the newest
// first, the median and the largest of each key; null where there is none.
export function minutes(samples, keys, now) {
  const rows = [];
  for (let m = 0; m < span / 60_000; m++) {
    const from = now - (m + 1) * 60_000;
    const part = samples.filter((s) => s.at > from && s.at <= from + 60_000);
    if (part.length === 0) {
      continue;
    }
    const values = keys.map((key) => {
      const v = part.map((s) => s[key]).filter((x) => x !== null).sort((a, b) => a - b);
      return v.length === 0 ? null : { median: v[Math.floor(v.length / 2)], max: v[v.length - 1] };
    });
    rows.push({ minute: m, wall: part[0].wall, values });
  }
  return rows;
}

// Asks the hosts for the past of the guest that is shown, and for what comes on top
// of it.

import { get, of, Refused } from './api.js';
import { rings, Samples } from './samples.js';

// again is how long a host that keeps none is not asked: one that has just begun,
// or has a new guest, has yet to look.
const again = 3000;

export class Past {
  constructor() {
    this.known = new Map(); // guest and ring → Samples
    this.asked = new Map(); // … and host → when it was asked last
    this.none = new Map(); // hosts that keep no samples, or none yet → when they said so
  }

  // samples are those of a guest that are known.
  samples(guest, ring) {
    return this.known.get(`${ring} ${guest}`)?.all ?? [];
  }

  // load asks each host of the guest's pair that can be asked and has something new.
  async load(model, guest, ring) {
    const now = performance.now();
    const hosts = model.pair(guest).filter((h) => (h === model.self || model.peers === 'yes') && !model.isQuiet(h, now) && !(now - this.none.get(h) < again));
    const due = hosts.filter((h) => now - (this.asked.get(`${ring} ${h} ${guest}`) ?? -Infinity) >= rings[ring].step - 100);
    await Promise.all(due.map(async (h) => {
      this.asked.set(`${ring} ${h} ${guest}`, now);
      await this.one(model, h, guest, ring);
    }));
  }

  async one(model, host, guest, ring) {
    const key = `${ring} ${guest}`;
    const samples = this.known.get(key) ?? new Samples(rings[ring]);
    this.known.set(key, samples);
    const since = samples.next(host);
    const path = `/api/v1/guests/${encodeURIComponent(guest)}/samples?ring=${ring}${since ? `&since=${encodeURIComponent(since)}` : ''}`;
    try {
      const series = await get(host === model.self ? path : of(host, path));
      this.none.delete(host);
      samples.took(host, series, performance.now(), Date.now());
    } catch (e) {
      if (e instanceof Refused && e.status === 404 && model.views(guest).some((v) => v.host === host)) {
        this.none.set(host, performance.now());
      }
    }
  }
}

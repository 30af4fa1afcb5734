// What is known: each host's last report, when it was heard, and the record of
// events. Nothing is made up: who was not heard has no report, and every report
// has its time. Times are milliseconds of one clock that only goes forward,
// given by the caller.

// keep bounds the events that are kept.
const keep = 500;

// quiet is how long a host may say nothing before what it said is called old.
// The page asks each host at least every two seconds.
export const quiet = 5000;

export class Model {
  constructor() {
    this.self = ''; // the host of the endpoint
    this.version = ''; // its release; another one means another page
    this.renewed = false;
    this.hosts = new Map(); // name → what is known of it, see host()
    this.peers = 'unknown'; // whether others answer through this host: unknown, yes, no
    this.events = []; // the newest first
    this.eventsOffered = true;
    this.known = new Set(); // of events
  }

  // host returns what is known of a host:
  //
  //	report, at       its last report, and when it came; null: none
  //	cluster, seen    its view of the ownership log, and when that came
  //	heard            when it gave any sign of life
  //	trouble          why it was not heard the last time; '': it was
  host(name) {
    let h = this.hosts.get(name);
    if (!h) {
      h = { name, report: null, at: null, cluster: null, seen: null, heard: null, trouble: '' };
      this.hosts.set(name, h);
    }
    return h;
  }

  // reported takes a host's report. One that is none is refused.
  reported(name, report, now) {
    if (!Array.isArray(report?.guests ?? []) || !(report.guests ?? []).every((g) => typeof g?.name === 'string' && g.log && typeof g.log === 'object')) {
      throw new Error(`${name} answers with what is no report`);
    }
    const h = this.host(name);
    Object.assign(h, { report, at: now, heard: now, trouble: '' });
    if (name === this.self) {
      this.renewed ||= this.version !== '' && this.version !== report.version;
      this.version = report.version;
    }
  }

  clustered(name, cluster, now) {
    Object.assign(this.host(name), { cluster, seen: now, heard: now, trouble: '' });
    for (const v of Array.isArray(cluster.voters) ? cluster.voters : []) {
      this.host(v.host);
    }
  }

  alive(name, now) {
    Object.assign(this.host(name), { heard: now, trouble: '' });
  }

  silent(name, why) {
    this.host(name).trouble = why;
  }

  // happened adds events, in whatever order they come.
  happened(list) {
    for (const e of Array.isArray(list) ? list.filter((x) => x && typeof x === 'object') : []) {
      const key = `${e.host} ${e.seq} ${e.kind}`;
      if (!this.known.has(key)) {
        this.known.add(key);
        this.events.push({ ...e, key, at: Date.parse(e.time) });
      }
    }
    this.events.sort((a, b) => b.at - a.at || (a.host === b.host ? b.seq - a.seq : 0));
    for (const e of this.events.splice(keep)) {
      this.known.delete(e.key);
    }
  }

  // isQuiet tells that a host's report is not to be taken for what is now.
  isQuiet(name, now) {
    const h = this.hosts.get(name);
    return !h || h.heard === null || h.trouble !== '' || now - h.heard > quiet;
  }

  // voters lists the hosts in the order of the configuration, where that is known.
  voters() {
    let newest = null;
    for (const h of this.hosts.values()) {
      if (h.cluster && (!newest || h.seen > newest.seen)) {
        newest = h;
      }
    }
    return newest?.cluster.voters ?? [];
  }

  // witness tells whether a host is the witness.
  isWitness(name) {
    return this.voters().some((v) => v.host === name && v.witness);
  }

  guests() {
    const names = new Set();
    for (const h of this.hosts.values()) {
      for (const g of h.report?.guests ?? []) {
        names.add(g.name);
      }
    }
    return [...names].sort();
  }

  // views lists what each host said of a guest.
  views(name) {
    const all = [];
    for (const h of this.hosts.values()) {
      const guest = h.report?.guests?.find((g) => g.name === name);
      if (guest) {
        all.push({ host: h.name, guest, at: h.at, heard: h.heard, report: h.report, trouble: h.trouble });
      }
    }
    return all;
  }

  // pair lists the two hosts that a guest may run on, the same one first
  // whichever runs it.
  pair(name) {
    const names = new Set(this.views(name).map((v) => v.host));
    for (const { guest } of this.views(name)) {
      for (const h of [guest.log.owner, guest.log.previous, guest.log.backup?.host, guest.primary?.backup]) {
        if (h) {
          names.add(h);
        }
      }
    }
    const order = this.voters().map((v) => v.host);
    const others = this.voters().filter((v) => !v.witness && !names.has(v.host)).map((v) => v.host);
    const all = [...names].filter((h) => !this.isWitness(h));
    if (all.length < 2) {
      all.push(...others.slice(0, 2 - all.length));
    }
    return all.sort((a, b) => order.indexOf(a) - order.indexOf(b) || (a < b ? -1 : 1)).slice(0, 2);
  }
}

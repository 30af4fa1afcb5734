// What the other hosts say, asked for through this one.

import { get, of, Refused } from './api.js';

const every = 2000;
const eventsEvery = 6000;
const seldom = 30_000; // where this host does not ask others

// ask keeps the model's other hosts up to date until signal ends it.
export async function ask(model, signal, changed) {
  const last = new Map(); // host → number of its last event here
  let events = -eventsEvery; // when they were asked for
  while (!signal.aborted) {
    const others = model.voters().map((v) => v.host).filter((h) => h !== model.self);
    const withEvents = performance.now() - events >= eventsEvery;
    if (withEvents) {
      events = performance.now();
    }
    await Promise.all(others.map((h) => one(model, h, withEvents ? last : null)));
    changed();
    await new Promise((done) => setTimeout(done, model.peers === 'no' ? seldom : every));
  }
}

async function one(model, host, last) {
  try {
    const report = await get(of(host, '/api/v1/status'));
    if (model.peers === 'no') {
      model.peers = 'unknown';
    }
    model.reported(host, report, performance.now());
    model.clustered(host, await get(of(host, '/api/v1/cluster')), performance.now());
    model.peers = 'yes';
    if (last) {
      await eventsOf(model, host, last);
    }
  } catch (e) {
    if (e instanceof Refused && [401, 403, 404, 405].includes(e.status)) {
      model.peers = 'no';
    } else {
      model.silent(host, e.message);
    }
  }
}

async function eventsOf(model, host, last) {
  const since = last.get(host);
  const list = await get(of(host, `/api/v1/events?limit=100${since === undefined ? '' : `&since=${since}`}`));
  last.set(host, list.last);
  model.happened(list.events);
}

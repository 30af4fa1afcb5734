// The endpoint's stream: reports as they change, events as they come. It is
// connected again whenever it ends or falls silent, and goes on with the first
// event that was missed.

import { open, Refused } from './api.js';
import { parser } from './sse.js';

// The endpoint says something at least every 10 s.
const silence = 15_000;
const shortest = 500;
const longest = 5000;

// listen follows until signal ends it. It calls
//
//	report(value)          a report
//	event(value)           an event
//	alive()                there was a sign of life
//	state(name, why)       connecting, live, lost or refused; a refused one ends
export async function listen({ since, signal, report, event, alive, state }) {
  let last = since;
  let wait = shortest;
  while (!signal.aborted) {
    state('connecting', '');
    let why = 'the connection ended';
    try {
      await follow({
        last, signal, report, alive,
        event: (value, id) => { last = id || last; event(value); },
        live: () => { wait = shortest; state('live', ''); },
      });
    } catch (e) {
      why = e.message;
      if (e instanceof Refused && (e.status === 401 || e.status === 403)) {
        state('refused', why);
        return;
      }
      wait = Math.max(wait, (e.retryAfter ?? 0) * 1000);
    }
    if (signal.aborted) {
      return;
    }
    state('lost', why);
    await pause(wait, signal);
    wait = Math.min(longest, wait * 2);
  }
}

async function follow({ last, signal, report, event, alive, live }) {
  const quiet = new AbortController();
  const headers = last ? { 'Last-Event-ID': last } : {};
  let timer = setTimeout(() => quiet.abort(), silence);
  try {
    const response = await open('/api/v1/stream?every=500', { headers, signal: AbortSignal.any([signal, quiet.signal]) });
    live();
    const take = parser(({ kind, id, data }) => {
      if (kind === 'status') {
        report(JSON.parse(data));
      } else if (kind === 'log') {
        event(JSON.parse(data), id);
      }
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      clearTimeout(timer);
      timer = setTimeout(() => quiet.abort(), silence);
      alive();
      take(value);
    }
  } catch (e) {
    if (quiet.signal.aborted) {
      throw new Error(`nothing was heard for ${silence / 1000} s`);
    }
    throw e;
  } finally {
    clearTimeout(timer);
    quiet.abort();
  }
}

function pause(ms, signal) {
  return new Promise((done) => {
    const over = () => { clearTimeout(timer); signal.removeEventListener('abort', over); done(); };
    const timer = setTimeout(over, ms);
    signal.addEventListener('abort', over);
  });
}

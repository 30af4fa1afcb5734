// Questions to the endpoint that this page came from.

import { token } from './token.js';

// Refused is an answer that is not what was asked for.
export class Refused extends Error {
  constructor(status, why, retryAfter) {
    super(why);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, 0 if the endpoint does not say
  }
}

// Silent is no answer, or one that is none of this endpoint's.
export class Silent extends Error {}

// answerTime is how long an ordinary answer may take, in milliseconds.
const answerTime = 5000;

// open sends a request and returns its answer, whose body is yet to be read.
export async function open(path, { method = 'GET', headers = {}, body, signal } = {}) {
  const secret = token();
  const all = { ...headers };
  if (secret) {
    all.Authorization = `Bearer ${secret}`;
  }
  if (body !== undefined) {
    all['Content-Type'] = 'application/json';
  }
  let response;
  try {
    response = await fetch(path, {
      method, headers: all, signal, body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store', credentials: 'same-origin', redirect: 'error', referrerPolicy: 'no-referrer',
    });
  } catch (e) {
    throw new Silent(e.name === 'TimeoutError' ? 'no answer in time' : 'no connection', { cause: e });
  }
  if (!response.ok) {
    throw await refusal(response);
  }
  return response;
}

async function refusal(response) {
  let why = `${response.status} ${response.statusText}`;
  try {
    const problem = await response.json();
    why = String(problem.error ?? problem.detail ?? why);
  } catch {
    // The status has to do.
  }
  return new Refused(response.status, why, Number(response.headers.get('Retry-After')) || 0);
}

// get returns an answer's JSON value.
export async function get(path, { time = answerTime } = {}) {
  return read(await open(path, { signal: AbortSignal.timeout(time) }));
}

// post asks for something to be done; that may take long.
export async function post(path, body) {
  return read(await open(path, { method: 'POST', body }));
}

// remove asks for something to be ended.
export async function remove(path) {
  return read(await open(path, { method: 'DELETE' }));
}

async function read(response) {
  try {
    return await response.json();
  } catch (e) {
    throw new Silent('the answer broke off', { cause: e });
  }
}

// of is the path of another host's answer to path.
export function of(host, path) {
  return `/api/v1/hosts/${encodeURIComponent(host)}${path}`;
}

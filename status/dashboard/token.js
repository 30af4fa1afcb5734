// The token that a person types in: kept for this tab only, and sent to this
// endpoint only.

const key = 'understudy-token';

// The endpoint refuses anything else by its form, and counts it as wrong.
const form = /^[A-Za-z0-9._~+/=-]{16,256}$/;

export function token() {
  return sessionStorage.getItem(key);
}

// keep takes a token, and reports whether it can be one.
export function keep(text) {
  const trimmed = text.trim();
  if (!form.test(trimmed)) {
    return false;
  }
  sessionStorage.setItem(key, trimmed);
  return true;
}

export function forget() {
  sessionStorage.removeItem(key);
}

// Numbers for people: three digits at most, and a unit.

// digits writes v with three significant digits, without an exponent.
function digits(v) {
  const a = Math.abs(v);
  if (a >= 100 || Number.isInteger(v)) {
    return String(Math.round(v));
  }
  return v.toFixed(a >= 10 ? 1 : 2).replace(/\.?0+$/, '');
}

// duration writes nanoseconds.
export function duration(ns) {
  if (ns === null || ns === undefined || Number.isNaN(ns)) {
    return 'unknown';
  }
  const a = Math.abs(ns);
  if (a === 0) {
    return '0 s';
  }
  if (a < 1e3) {
    return `${digits(ns)} ns`;
  }
  if (a < 1e6) {
    return `${digits(ns / 1e3)} µs`;
  }
  if (a < 1e9) {
    return `${digits(ns / 1e6)} ms`;
  }
  const s = Math.round(a / 1e9);
  if (s < 60) {
    return `${a < 1e10 ? (ns / 1e9).toFixed(1).replace(/\.0$/, '') : Math.round(ns / 1e9)} s`;
  }
  const [big, unit, small, less] = s < 3600 ? [60, 'min', 1, 's'] : s < 86400 ? [3600, 'h', 60, 'min'] : [86400, 'd', 3600, 'h'];
  const rest = Math.floor((s % big) / small);
  return `${Math.floor(s / big)} ${unit}${rest > 0 ? ` ${rest} ${less}` : ''}`;
}

// age writes how long ago something was, in milliseconds, without more
// precision than a glance needs.
export function age(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) {
    return 'unknown';
  }
  if (ms < 1000) {
    return 'under 1 s';
  }
  return duration(Math.floor(ms / 1000) * 1e9);
}

// bytes writes a number of bytes.
export function bytes(n) {
  if (n === null || n === undefined || Number.isNaN(n)) {
    return 'unknown';
  }
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let u = 0;
  let v = Math.max(0, n);
  while (v >= 1024 && u < units.length - 1) {
    v /= 1024;
    u++;
  }
  return `${u === 0 ? Math.round(v) : digits(v)} ${units[u]}`;
}

// rate writes bytes a second.
export function rate(n) {
  return n === null || n === undefined || Number.isNaN(n) ? 'unknown' : `${bytes(n)}/s`;
}

// count writes a whole number in groups of three.
export function count(n) {
  return n === null || n === undefined ? 'unknown' : String(n).replace(/\B(?=(\d{3})+$)/g, '\u202f');
}

// percent writes a part of one.
export function percent(part) {
  return part === null || part === undefined || Number.isNaN(part) ? 'unknown' : `${Math.floor(Math.min(1, Math.max(0, part)) * 100)}%`;
}

function two(n) {
  return String(n).padStart(2, '0');
}

// clock writes the local time of day of a Date.
export function clock(date) {
  return Number.isNaN(date.getTime()) ? 'unknown' : `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

// day writes the local date of a Date.
export function day(date) {
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

// plural writes a count with its noun.
export function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? '' : 's'}`;
}

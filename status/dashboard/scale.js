// From values to places in a plot. Pure.

// steps returns the lines of an axis from 0 to at least max: three to six, at
// round numbers of the unit (1024 for bytes, 1000 else; 60 from a minute on is
// not needed: nothing that is plotted lasts that long).
export function steps(max, base) {
  if (!(max > 0)) {
    return [0, 1];
  }
  const unit = base === 1024 ? 1024 ** Math.max(0, Math.floor(Math.log2(max) / 10)) : 1;
  const scaled = max / unit;
  const power = 10 ** Math.floor(Math.log10(scaled));
  const step = [0.2, 0.25, 0.5, 1, 2, 2.5].find((s) => scaled / (s * power) <= 5) * power;
  const n = Math.max(1, Math.ceil(scaled / step - 1e-9));
  return Array.from({ length: n + 1 }, (_, i) => Number((i * step).toPrecision(12)) * unit);
}

// linear returns the function that maps from..to to a..b.
export function linear(from, to, a, b) {
  const k = to === from ? 0 : (b - a) / (to - from);
  return (v) => a + (v - from) * k;
}

// ticks returns the marks of an axis of time that goes back for a span, in
// milliseconds: at most n after the first, which is 0.
export function ticks(span, n) {
  const step = [10, 15, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600, 7200].map((s) => s * 1000).find((s) => span / s <= n) ?? span;
  return Array.from({ length: Math.floor(span / step) + 1 }, (_, i) => i * step);
}

function place(v) {
  return Math.round(v * 10) / 10;
}

// path returns the line through points [x, y]; one whose y is null breaks it.
// A point between two breaks is drawn as a short dash.
export function path(points) {
  let d = '';
  let pen = false;
  points.forEach(([x, y], i) => {
    if (y === null) {
      pen = false;
      return;
    }
    if (pen) {
      d += `L${place(x)} ${place(y)}`;
    } else {
      d += `M${place(x)} ${place(y)}`;
      if (i + 1 >= points.length || points[i + 1][1] === null) {
        d += 'h1';
      }
    }
    pen = true;
  });
  return d;
}

// area returns the shape between two lines of points [x, low, high]; one whose
// low is null breaks it.
export function area(points) {
  let d = '';
  let part = [];
  const close = () => {
    if (part.length > 1) {
      const up = part.map(([x, , high]) => `${place(x)} ${place(high)}`);
      const down = part.map(([x, low]) => `${place(x)} ${place(low)}`).reverse();
      d += `M${up.join('L')}L${down.join('L')}Z`;
    }
    part = [];
  };
  for (const p of points) {
    if (p[1] === null) {
      close();
    } else {
      part.push(p);
    }
  }
  close();
  return d;
}

// stack returns for each key the [low, high] of each sample, one upon the other;
// nulls where a sample has no value.
export function stack(samples, keys) {
  const out = new Map(keys.map((k) => [k, []]));
  for (const s of samples) {
    let sum = 0;
    const whole = keys.every((k) => s[k] !== null);
    for (const k of keys) {
      out.get(k).push(whole ? [sum, sum + s[k]] : [null, null]);
      sum += whole ? s[k] : 0;
    }
  }
  return out;
}

// nearest returns the index of the sample nearest to a time, -1 if there is none.
export function nearest(samples, at) {
  let low = 0;
  let high = samples.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (samples[mid].at < at) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  if (low === samples.length) {
    return low - 1;
  }
  return low > 0 && at - samples[low - 1].at < samples[low].at - at ? low - 1 : low;
}

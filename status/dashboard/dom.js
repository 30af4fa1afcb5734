// Elements of the page. Text is always set as text: nothing here, or anywhere
// else, makes markup of a string.

const SVG = 'http://www.w3.org/2000/svg';

// el makes an HTML element. A property whose name begins with "on" is a
// listener, a false one is left out, a true one is there without a value.
export function el(name, properties, ...children) {
  return fill(document.createElement(name), properties, children);
}

// svg makes an element of a picture.
export function svg(name, properties, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(node, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    set(node, key, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

// set changes one property, if it is another one.
export function set(node, key, value) {
  if (typeof value === 'function') {
    node.addEventListener(key.slice(2), value);
  } else if (value === false || value === null || value === undefined) {
    node.removeAttribute(key);
  } else {
    const text = value === true ? '' : String(value);
    if (node.getAttribute(key) !== text) {
      node.setAttribute(key, text);
    }
  }
}

// say sets an element's text, if it is another one: what did not change is not
// read out again, and keeps its selection.
export function say(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

export function show(node, yes) {
  if (node.hidden === yes) {
    node.hidden = !yes;
  }
}

// list keeps a parent's children in step with items: those whose key is still
// there stay as they are, so that focus and selection do, too.
export function list(parent, items, keyOf, make, update) {
  const had = new Map([...parent.children].map((c) => [c.dataset.key, c]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = had.get(key);
    had.delete(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
    }
    if (update) {
      update(node, item);
    }
    if (node === at) {
      at = at.nextElementSibling;
    } else {
      parent.insertBefore(node, at);
    }
  }
  for (const node of had.values()) {
    node.remove();
  }
}

const icons = {
  good: ['circle', 'M6.5 12.5l3.5 3.5 7.5-8'],
  busy: ['circle', 'M12 6.5v5.8l4 2.4'],
  warn: ['triangle', 'M12 9v5.2M12 17v.4'],
  bad: ['octagon', 'M8.5 8.5l7 7M15.5 8.5l-7 7'],
  off: ['square', 'M8 8h8v8H8z'],
  unknown: ['circle', 'M9.3 9.6a2.8 2.8 0 1 1 4.2 2.5c-1 .6-1.5 1.1-1.5 2.2M12 17v.4'],
};

const shapes = {
  circle: 'M12 2a10 10 0 1 0 0 20a10 10 0 1 0 0-20z',
  triangle: 'M12 2.5L23 21.5H1z',
  octagon: 'M8 2h8l6 6v8l-6 6H8l-6-6V8z',
  square: 'M4 2h16a2 2 0 0 1 2 2v16a2 2 0 0 1-2 2H4a2 2 0 0 1-2-2V4a2 2 0 0 1 2-2z',
};

// icon is a state's sign. Its shape says the same as its colour; what it means
// is in the words beside it.
export function icon(tone) {
  const [shape, mark] = icons[tone] ?? icons.unknown;
  return svg('svg', { class: `icon ${tone}`, viewBox: '0 0 24 24', 'aria-hidden': 'true' },
    svg('path', { class: 'shape', d: shapes[shape] }),
    svg('path', { class: 'mark', d: mark }));
}

// reicon puts another sign in an icon's place, if it is another one.
export function reicon(node, tone) {
  if (node.classList.contains(tone)) {
    return node;
  }
  const next = icon(tone);
  node.replaceWith(next);
  return next;
}

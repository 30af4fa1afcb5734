// The format of server-sent events (HTML Living Standard, 9.2.6). The browser's
// own reader of it cannot send a token, so the stream is fetched and read here.

// longest bounds one line, in characters: a report of many guests is one line.
const longest = 8 << 20;

// parser returns a function that takes pieces of text as they come and calls
// got({kind, id, data}) for each whole event. id is the last one there was. It
// throws on a line that is longer than any endpoint sends.
export function parser(got) {
  let rest = '';
  let kind = '';
  let data = [];
  let id = '';
  let begun = false;
  return (text) => {
    if (!begun && text !== '') {
      begun = true;
      text = text.replace(/^\uFEFF/, '');
    }
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    if (rest.length > longest) {
      throw new Error(`a line of more than ${longest} characters`);
    }
    for (let line of lines) {
      line = line.replace(/\r$/, '');
      if (line === '') {
        if (data.length > 0) {
          got({ kind: kind || 'message', id, data: data.join('\n') });
        }
        kind = '';
        data = [];
        continue;
      }
      const colon = line.indexOf(':');
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (field === 'event') {
        kind = value;
      } else if (field === 'data') {
        data.push(value);
      } else if (field === 'id' && !value.includes('\0')) {
        id = value;
      }
    }
  };
}

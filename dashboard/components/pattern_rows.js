// One head's pattern as it is sent: for each query its keys and weights, little-endian, base64.
// Weights are 16-bit numbers of sqrt(weight), so that small ones keep their digits.
function numbersOf(text, Kind) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
}

function patternOf(sent) {
  const queries = numbersOf(sent.queries, Int32Array);
  const starts = numbersOf(sent.starts, Uint32Array);
  const keys = numbersOf(sent.keys, Int32Array);
  const roots = numbersOf(sent.weights, Uint16Array);
  const rowOf = new Map();
  queries.forEach((query, row) => rowOf.set(query, row));
  const weight = (i) => (roots[i] / 65535) ** 2;
  return {
    queries,
    has: (query) => rowOf.has(query),
    // What a query reads: a weight for each key.
    reads(query) {
      const found = new Float32Array(sent.count);
      const row = rowOf.get(query);
      if (row === undefined) return found;
      for (let i = starts[row]; i < starts[row + 1]; i++) found[keys[i]] += weight(i);
      return found;
    },
    // How much each query reads a key, by the query's position.
    readers(key) {
      const found = new Float32Array(sent.positions);
      for (let row = 0; row < queries.length; row++)
        for (let i = starts[row]; i < starts[row + 1]; i++)
          if (keys[i] === key) found[queries[row]] += weight(i);
      return found;
    },
  };
}

function shown(weight) {
  if (weight === 0) return "0";
  if (weight < 0.001) return "< 0.001";
  return weight.toPrecision(2).replace(/e.*/, "");
}

// What a query shows, told to the other components that show the same pattern.
const SEEN = "headscope-pattern";
function tell(group, detail) {
  window.dispatchEvent(new CustomEvent(SEEN, { detail: { group, ...detail } }));
}
function hear(group, from, act) {
  const listener = (event) => {
    if (event.detail.group === group && event.detail.from !== from) act(event.detail);
  };
  window.addEventListener(SEEN, listener);
  return () => window.removeEventListener(SEEN, listener);
}

// The weight that is drawn in full colour: the largest of those that count, never 0.
function fullColour(weights, counts) {
  let top = 0;
  for (let i = 0; i < weights.length; i++) if (counts(i) && weights[i] > top) top = weights[i];
  if (top === 0) for (const weight of weights) if (weight > top) top = weight;
  return top || 1;
}

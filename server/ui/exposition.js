// Prometheus's text format, as far as the page reads it.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// { samples: Map of name to [{ labels, value }], help: Map of family to text }
export function parse(text) {
  const samples = new Map();
  const help = new Map();
  for (const line of text.split("\n")) {
    if (line.startsWith("# HELP ")) {
      const [, name, what] = line.match(/^# HELP (\S+) (.*)$/) ?? [];
      if (name) help.set(name, what);
      continue;
    }
    const match = line.match(SAMPLE);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return { samples, help };
}

// The sum of a family's samples, or null where there is none.
export function total({ samples }, name) {
  return samples.get(name)?.reduce((sum, { value }) => sum + value, 0) ?? null;
}

// A histogram's quantile, by straight lines within a bucket; null where nothing was observed.
export function quantile({ samples }, name, share) {
  const buckets = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
    const edge = labels.le === "+Inf" ? Infinity : Number(labels.le);
    buckets.set(edge, (buckets.get(edge) ?? 0) + value);
  }
  const edges = [...buckets.keys()].sort((one, other) => one - other);
  const count = edges.length ? buckets.get(edges.at(-1)) : 0;
  if (!count) return null;
  let [before, below] = [0, 0];
  for (const edge of edges) {
    const upTo = buckets.get(edge);
    if (upTo >= share * count) {
      if (edge === Infinity) return before;
      return before + ((edge - before) * (share * count - below)) / (upTo - below);
    }
    [before, below] = [edge, upTo];
  }
  return before;
}

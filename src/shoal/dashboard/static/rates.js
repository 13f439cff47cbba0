// Rates and percentiles of the last minute, out of counts that only grow. Pure.

const WINDOW = 60;

/** @typedef {{requests: number, tokens: number, p50: number | null, p95: number | null, running: number, waiting: number}} Rates */

/** Keep a reading with those of the window before it. @param {Traffic[]} kept @param {Traffic} next */
export function keep(kept, next) {
  const young = kept.filter((one) => one.at < next.at && one.at >= next.at - WINDOW);
  return [...young, next];
}

/** Of each model, from the oldest reading that is kept to the newest. @param {Traffic[]} kept
 * @returns {Map<string, Rates>} */
export function rates(kept) {
  const last = kept.at(-1);
  const first = kept[0];
  if (!last || !first) return new Map();
  const before = new Map(first.models.map((one) => [one.model, one]));
  const time = last.at - first.at;
  return new Map(last.models.map((one) => [one.model, between(before.get(one.model), one, time, last.bounds)]));
}

/** @param {ModelTraffic | undefined} before @param {ModelTraffic} after @param {number} time @param {number[]} bounds
 * @returns {Rates} */
function between(before, after, time, bounds) {
  // Relays that start anew count from nothing again.
  const anew = !before || after.requests < before.requests || after.completion_tokens < before.completion_tokens;
  const per = (/** @type {number} */ count) => (time > 0 && !anew ? count / time : 0);
  const counts = after.first_byte.map((count, at) => Math.max(0, count - (anew ? 0 : (before.first_byte[at] ?? 0))));
  return {
    requests: per(after.requests - (before?.requests ?? 0)),
    tokens: per(after.completion_tokens - (before?.completion_tokens ?? 0)),
    p50: quantile(counts, bounds, 0.5),
    p95: quantile(counts, bounds, 0.95),
    running: after.running,
    waiting: after.queued + after.held,
  };
}

/** A quantile of a histogram, as if values lay evenly within a bucket; of the last one, its bound. Null without values.
 * @param {number[]} counts @param {number[]} bounds upper bounds; `counts` has one more @param {number} q */
export function quantile(counts, bounds, q) {
  const sum = counts.reduce((a, b) => a + b, 0);
  if (!sum) return null;
  let left = q * sum;
  for (const [at, count] of counts.entries()) {
    const upper = bounds[at];
    if (upper === undefined) return bounds.at(-1) ?? null;
    const lower = bounds[at - 1] ?? 0;
    if (left <= count && count) return lower + (upper - lower) * (left / count);
    left -= count;
  }
  return null;
}

// How far events were read without a gap, by their ids, which grow with time. Pure.

/** Events that were read with none missing between them. @typedef {{oldest: number, newest: number}} Run */
/** The runs of one filter, the newest first; `ended`: nothing older than the last of them is kept. @typedef {{runs: Run[], ended: boolean}} Reads */

/** @type {Reads} */
export const NOTHING = { runs: [], ended: false };

/** With a page more, the oldest event first: the newest page there is, or the one before the oldest of the first run.
 * `heard` says whether the stream told an event before; what it tells follows the run without a gap.
 * @template {{id?: number | null}} T
 * @param {Reads} reads @param {T[]} page @param {{newest: boolean, limit: number, heard?: (event: T) => boolean}} about @returns {Reads} */
export function withPage({ runs, ended }, page, { newest, limit, heard = () => false }) {
  const ids = page.flatMap(({ id }) => id ?? []);
  const [top] = runs;
  const oldest = ids.length ? Math.min(...ids) : newest ? Infinity : (top?.oldest ?? Infinity);
  const last = newest || !top ? Math.max(0, ...ids) : top.newest;
  if (page.length < limit) return { runs: last ? [{ oldest, newest: last }] : [], ended: true };
  let [below, ...others] = newest ? runs : runs.slice(1);
  let reach = oldest;
  let told = page[0] !== undefined && heard(page[0]);
  while (below && (told || reach <= below.newest)) {
    reach = Math.min(reach, below.oldest);
    [below, ...others] = others;
    told = false;
  }
  return { runs: [{ oldest: reach, newest: last }, ...(below ? [below, ...others] : [])], ended };
}

/** The id from which on all is read, 0 if that is all there is; `wider` are the reads of filters that let more through.
 * @param {Reads | undefined} reads @param {Reads[]} wider */
export function reach(reads, wider) {
  const from = (/** @type {Reads} */ one) => (one.ended && one.runs.length < 2 ? 0 : (one.runs[0]?.oldest ?? Infinity));
  const own = reads ? from(reads) : Infinity;
  return wider.reduce((least, one) => (!reads || own <= (one.runs[0]?.newest ?? 0) ? Math.min(least, from(one)) : least), own);
}

/** After events older than `least` were forgotten. @param {Reads} reads @param {number} least @returns {Reads} */
export function forgotten({ runs }, least) {
  return { runs: runs.flatMap(({ oldest, newest }) => (newest < least ? [] : { oldest: Math.max(oldest, least), newest })), ended: false };
}

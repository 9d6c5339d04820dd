/**
 * The arithmetic of the statistics modes, without page or drawing. It follows sbnref/modes.py and the definition in
 * sbnref/conformance/oracle.py; tests/site compares it with both.
 *
 * @typedef {object} Rank One rank's input, for a single channel.
 * @property {number} n Batch size.
 * @property {number} h Height.
 * @property {number} w Width.
 * @property {number} mean Local mean.
 * @property {number} std Local standard deviation, biased.
 *
 * @typedef {"default" | "N" | "exact"} Mode
 *
 * @typedef {object} Moments
 * @property {number} mean
 * @property {number} variance Biased.
 *
 * @typedef {Moments & {weights: number[], divisor: number}} Combined
 */

/** @type {Mode[]} */
export const MODES = ["default", "N", "exact"];

/** The layer adds this to the variance before it takes the root. */
export const EPS = 1e-5;

/** Differences below this, relative to the size of the data, are rounding. */
const ROUNDING = 1e-12;

/** @param {Rank} rank @returns {number} Elements per channel, m. */
export function elements(rank) {
  return rank.n * rank.h * rank.w;
}

/**
 * @param {Rank} rank
 * @returns {number} The local variance; 0 for a single element with any given spread.
 */
export function variance(rank) {
  return elements(rank) > 1 ? rank.std ** 2 : 0;
}

/** @param {Rank} rank @param {Mode} mode @returns {number} */
export function weight(rank, mode) {
  const m = elements(rank);
  if (m === 0) return 0;
  return { default: 1, N: rank.n, exact: m }[mode];
}

/**
 * Combine the ranks' own statistics in a mode.
 *
 * @param {Rank[]} ranks
 * @param {Mode} mode
 * @returns {Combined}
 */
export function combine(ranks, mode) {
  const weights = ranks.map((rank) => weight(rank, mode));
  const divisor = mode === "default" ? ranks.length : Math.max(sum(weights), 1);
  const mean = sum(ranks.map((rank, r) => weights[r] * rank.mean)) / divisor;
  const squares = ranks.map((rank, r) => weights[r] * (variance(rank) + (rank.mean - mean) ** 2));
  return { weights, divisor, mean, variance: sum(squares) / divisor };
}

/**
 * Mean and variance over all elements, or null if there are none. Ranks merge one by one, as Chan, Golub and LeVeque
 * do, to be independent of mode 'exact'.
 *
 * @param {Rank[]} ranks
 * @returns {Moments | null}
 */
export function truth(ranks) {
  let count = 0;
  let mean = 0;
  let squares = 0;
  for (const rank of ranks) {
    const m = elements(rank);
    if (m === 0) continue;
    const delta = rank.mean - mean;
    squares += m * variance(rank) + (delta ** 2 * count * m) / (count + m);
    count += m;
    mean += (delta * m) / count;
  }
  return count === 0 ? null : { mean, variance: squares / count };
}

/**
 * Relative errors against the truth: 0 where the difference is rounding, infinite where the true value is 0.
 *
 * @param {Moments} computed
 * @param {Moments} real
 * @returns {Moments}
 */
export function relativeErrors(computed, real) {
  const size = Math.sqrt(real.variance + real.mean ** 2);
  return {
    mean: relative(computed.mean, real.mean, ROUNDING * size),
    variance: relative(computed.variance, real.variance, Math.max(ROUNDING * real.variance, (ROUNDING * size) ** 2)),
  };
}

/** @param {number} value @param {number} real @param {number} rounding @returns {number} */
function relative(value, real, rounding) {
  const difference = value - real;
  if (Math.abs(difference) <= rounding) return 0;
  return Math.abs(real) <= rounding ? Math.sign(difference) * Infinity : difference / Math.abs(real);
}

/** @param {Moments} errors @returns {boolean} Whether a mode computes the true statistics. */
export function agrees(errors) {
  return errors.mean === 0 && errors.variance === 0;
}

/**
 * Mean and standard deviation of the layer's outputs over all elements; 0 and (up to eps) 1 if the mode is right.
 *
 * @param {Moments} computed
 * @param {Moments} real
 * @returns {{mean: number, std: number}}
 */
export function outputs(computed, real) {
  const sigma = Math.sqrt(computed.variance + EPS);
  const offset = relativeErrors(computed, real).mean === 0 ? 0 : real.mean - computed.mean;
  return { mean: offset / sigma, std: Math.sqrt(real.variance) / sigma };
}

/** @param {number[]} values @returns {number} */
export function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

/**
 * A case is a list of ranks. This module has the limits of its numbers, the presets, and its form in a link.
 *
 * @typedef {import("./statistics.js").Rank} Rank
 *
 * @typedef {object} Field
 * @property {keyof Rank} key
 * @property {string} label
 * @property {number} min
 * @property {number} max
 * @property {number} step The step of an arrow key.
 * @property {boolean} whole
 *
 * @typedef {object} Preset
 * @property {string} name
 * @property {string} note The point of the case.
 * @property {Rank[]} ranks
 */

export const MAX_RANKS = 8;

/** @type {Field[]} In the order in which a link lists them. */
export const FIELDS = [
  { key: "n", label: "batch size", min: 0, max: 999, step: 1, whole: true },
  { key: "h", label: "height", min: 0, max: 999, step: 1, whole: true },
  { key: "w", label: "width", min: 0, max: 999, step: 1, whole: true },
  { key: "mean", label: "mean", min: -9999, max: 9999, step: 0.5, whole: false },
  { key: "std", label: "standard deviation", min: 0, max: 9999, step: 0.1, whole: false },
];

/** @type {Preset[]} */
export const PRESETS = [
  {
    name: "One empty rank",
    note:
      "Rank 3 has no samples. Mode 'default' still divides by the number of all ranks, which pulls the mean towards " +
      "zero, away from the data, and changes the variance too. The other two modes count only ranks with data.",
    ranks: [rank(4, 8, 8, 4, 1), rank(4, 8, 8, 5, 1), rank(4, 8, 8, 6, 1), rank(0, 8, 8, 5, 1)],
  },
  {
    name: "Equal batches",
    note:
      "Every rank has the same number of elements, so every mode gives them the right weights: all agree. " +
      "Now set one batch size to 0.",
    ranks: [rank(4, 8, 8, 0, 1), rank(4, 8, 8, 1, 1), rank(4, 8, 8, 2, 1), rank(4, 8, 8, 5, 1)],
  },
  {
    name: "All but one empty",
    note:
      "A single rank holds all the data, as happens to detection heads. Each empty rank adds to the divisor of mode " +
      "'default' and nothing else.",
    ranks: [rank(4, 8, 8, 2, 1), rank(0, 8, 8, 2, 1), rank(0, 8, 8, 2, 1), rank(0, 8, 8, 2, 1)],
  },
  {
    name: "Ragged batches",
    note:
      "The last batch of an epoch is split unevenly. Mode 'default' gives the smallest rank the same weight as the " +
      "largest. All samples have one spatial size, so mode 'N' is right.",
    ranks: [rank(12, 8, 8, 1, 1), rank(6, 8, 8, 2, 1), rank(3, 8, 8, 4, 1), rank(1, 8, 8, 8, 1)],
  },
  {
    name: "Unequal spatial sizes",
    note:
      "Images have several sizes, and a large image has more elements. Mode 'N' counts samples, so it is " +
      "wrong as well; only mode 'exact' counts elements.",
    ranks: [rank(2, 32, 32, 1, 1), rank(3, 16, 16, 3, 1), rank(4, 8, 8, 6, 1)],
  },
  {
    name: "Means far apart",
    note:
      "Each rank is narrow, the whole is wide: the variance is mostly the distance between the means. A small error " +
      "in the weights is a large one in the result.",
    ranks: [rank(4, 8, 8, -8, 0.5), rank(4, 8, 8, 0, 0.5), rank(3, 8, 8, 8, 0.5)],
  },
  {
    name: "All empty",
    note:
      "No rank has data. The outputs are empty, and the running statistics stay as they are.",
    ranks: [rank(0, 8, 8, 0, 1), rank(0, 8, 8, 0, 1), rank(0, 8, 8, 0, 1)],
  },
];

/** @returns {Rank} */
function rank(n, h, w, mean, std) {
  return { n, h, w, mean, std };
}

/** @param {Field} field @param {number} value @returns {boolean} */
export function allowed(field, value) {
  return value >= field.min && value <= field.max && (!field.whole || Number.isInteger(value));
}

/** @param {Field} field @returns {string} */
export function requirement(field) {
  return `a ${field.whole ? "whole " : ""}number from ${field.min} to ${field.max}`.replace("-", "−");
}

/** @param {Rank[]} ranks @returns {string} The fragment of a link, such as "#ranks=4,8,8,2,1/0,8,8,3,1". */
export function toFragment(ranks) {
  return "#ranks=" + ranks.map((rank) => FIELDS.map((field) => rank[field.key]).join(",")).join("/");
}

/** @param {string} fragment @returns {boolean} Whether it stands for a case, readable or not. */
export function meansCase(fragment) {
  return fragment.startsWith("#ranks=");
}

/** @param {string} fragment @returns {Rank[] | null} null if it is unreadable. */
export function fromFragment(fragment) {
  const rows = fragment
    .replace("#ranks=", "")
    .replaceAll(/%2c/gi, ",") // some programs escape commas
    .split("/")
    .map((row) => row.split(",").map((text) => (text.trim() === "" ? NaN : Number(text))));
  const readable = rows.every(
    (row) => row.length === FIELDS.length && FIELDS.every((field, i) => allowed(field, row[i])),
  );
  if (!meansCase(fragment) || !readable || rows.length > MAX_RANKS) return null;
  return rows.map(([n, h, w, mean, std]) => rank(n, h, w, mean, std));
}

/**
 * Numbers and results in words.
 *
 * @typedef {import("./statistics.js").Rank} Rank
 * @typedef {import("./statistics.js").Moments} Moments
 */

import { MODES, agrees, combine, elements, relativeErrors, sum, truth } from "./statistics.js";

/** @param {number} value @param {number} [digits] Significant digits. @returns {string} */
export function number(value, digits = 4) {
  const rounded = Number(value.toPrecision(digits));
  const size = Math.abs(rounded);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [mantissa, exponent] = rounded.toExponential().split("e");
    return minus(`${mantissa}·10`) + superscript(Number(exponent));
  }
  return minus(String(rounded));
}

/** @param {string} text @returns {string} */
function minus(text) {
  return text.replace("-", "−");
}

/** @param {number} exponent @returns {string} */
function superscript(exponent) {
  return [...String(exponent)].map((character) => (character === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(character)])).join("");
}

/**
 * A relative error in percent, or the difference if the true value is 0.
 *
 * @param {number} error
 * @param {number} difference
 * @returns {string}
 */
export function percent(error, difference) {
  const sign = error > 0 ? "+" : "";
  if (Number.isFinite(error)) return `${sign}${number(100 * error, 3)}\u00a0%`;
  return `${sign}${number(difference, 3)} (truth 0)`;
}

/** @param {string[]} items @returns {string} */
export function list(items) {
  return items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
}

/** @param {number} count @param {string} noun @returns {string} */
function counted(count, noun) {
  return `${count.toLocaleString("en").replaceAll(",", " ")} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {Rank[]} ranks @returns {string} The result in a few sentences. */
export function summary(ranks) {
  const real = truth(ranks);
  const empty = ranks.filter((rank) => elements(rank) === 0).length;
  if (real === null) {
    return (
      "Every rank is empty: there is no distribution, every mode gives mean 0 and variance 0, " +
      "and the running statistics stay as they are."
    );
  }
  const held = `${counted(ranks.length, "rank")}${empty ? `, ${empty} empty` : ""}`;
  const start = `${held}, ${counted(sum(ranks.map(elements)), "element")} per channel.`;
  return [start, ...verdicts(ranks, real)].join(" ");
}

/** @param {Rank[]} ranks @param {Moments} real @returns {string[]} */
function verdicts(ranks, real) {
  const right = [];
  const sentences = [];
  for (const mode of MODES) {
    const computed = combine(ranks, mode);
    const errors = relativeErrors(computed, real);
    if (agrees(errors)) right.push(`'${mode}'`);
    else {
      const mean = percent(errors.mean, computed.mean - real.mean);
      const variance = percent(errors.variance, computed.variance - real.variance);
      sentences.push(`Mode '${mode}' is off: mean ${mean}, variance ${variance}.`);
    }
  }
  if (right.length === MODES.length) return ["All three modes agree with the truth."];
  return [
    ...sentences,
    right.length > 1 ? `Modes ${list(right)} agree with the truth.` : `Only mode ${right[0]} agrees with the truth.`,
  ];
}

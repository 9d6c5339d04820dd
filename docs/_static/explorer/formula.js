/**
 * The formula of a mode with the numbers of the case. Fractions are boxes of text: on a phone, a sum over eight ranks
 * breaks into lines, which MathML does not support.
 *
 * @typedef {import("./statistics.js").Rank} Rank
 * @typedef {import("./statistics.js").Mode} Mode
 */

import { hidden, html } from "./dom.js";
import { combine, elements, variance } from "./statistics.js";
import { number } from "./words.js";

/** The weight of a rank, and the divisor. */
const RULES = {
  default: ["1 for a rank that has elements, 0 for an empty one", "the number of ranks"],
  N: ["the rank's batch size, 0 if it is empty", "max(1, sum of the weights)"],
  exact: ["the rank's number of elements", "max(1, sum of the weights)"],
};

/** @param {Rank[]} ranks @param {Mode} mode @returns {HTMLElement} */
export function formula(ranks, mode) {
  const computed = combine(ranks, mode);
  const { weights, divisor, mean } = computed;
  const [weighs, divides] = RULES[mode];
  const title = html("h3", { id: `formula-${mode}` }, `Mode '${mode}'`);
  const rule = html("p", {}, italic("w"), ` = ${weighs}; `, italic("D"), ` = ${divides} = ${divisor}`);
  const means = terms(ranks, (rank, r) => `${weights[r]}·${signed(rank.mean)}`);
  const squares = terms(
    ranks,
    (rank, r) => `${weights[r]}·(${square(rank)} + (${number(rank.mean)} − ${signed(mean)})²)`,
  );
  return html(
    "section",
    { class: mode, "aria-labelledby": title.id },
    title,
    rule,
    equation("mean", means, divisor, computed.mean),
    equation("variance", squares, divisor, computed.variance),
  );
}

/** @param {string} text @returns {HTMLElement} */
function italic(text) {
  return html("i", {}, text);
}

/** @param {number} value @returns {string} In parentheses if negative. */
function signed(value) {
  return value < 0 ? `(${number(value)})` : number(value);
}

/** @param {Rank} rank @returns {string} Its variance, as a square if it is not 0. */
function square(rank) {
  return variance(rank) === 0 ? "0" : `${number(rank.std)}²`;
}

/** One term for each rank, 0 for an empty one; a line may break between terms, not inside. */
function terms(ranks, term) {
  return ranks.flatMap((rank, r) => {
    const empty = elements(rank) === 0;
    const box = html("span", { class: empty ? "term nil" : "term" }, empty ? "0" : term(rank, r));
    return r === 0 ? [box] : [" + ", box];
  });
}

/**
 * @param {string} name
 * @param {(Node | string)[]} numerator
 * @param {number} divisor
 * @param {number} value
 * @returns {HTMLElement}
 */
function equation(name, numerator, divisor, value) {
  return html(
    "p",
    { class: "equation" },
    html("span", {}, `${name} = `),
    html(
      "span",
      { class: "fraction" },
      html("span", { class: "numerator" }, ...numerator),
      hidden(" divided by "),
      html("span", { class: "divisor" }, String(divisor)),
    ),
    html("span", {}, " = ", html("b", {}, number(value))),
  );
}

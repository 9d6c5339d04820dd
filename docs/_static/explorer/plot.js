/**
 * The drawing: the distributions on top, and below them, on the same axis, the statistics of each mode.
 *
 * @typedef {import("./statistics.js").Rank} Rank
 * @typedef {import("./statistics.js").Moments} Moments
 *
 * @typedef {object} Scene The values that all parts of the drawing need.
 * @property {Rank[]} ranks
 * @property {Moments | null} real
 * @property {(value: number) => number} x
 * @property {number[]} xs The points at which densities are evaluated.
 * @property {number} top The highest density.
 * @property {[number, number]} range
 * @property {number} width
 */

import { svg } from "./dom.js";
import { MODES, combine, elements, sum, truth, variance } from "./statistics.js";
import { number } from "./words.js";

const GUTTER = 60; // labels on the left
const RIGHT = 8;
const HEAD = 20; // room for the labels above the highest curve
const AXIS = 30;
const ROW = 46;

/**
 * @param {SVGElement} target Emptied first.
 * @param {Rank[]} ranks
 * @param {number} width Pixels. Text keeps its size, so each width needs a new drawing.
 */
export function draw(target, ranks, width) {
  const panel = Math.round(Math.min(230, 120 + width / 8));
  const rows = ["truth", ...MODES];
  const bottom = panel + ROW * rows.length;
  target.setAttribute("viewBox", `0 0 ${width} ${bottom + AXIS}`);
  target.setAttribute("width", String(width));
  target.setAttribute("height", String(bottom + AXIS));
  const scene = prepare(ranks, width);
  target.replaceChildren(
    ...reference(scene, panel, bottom),
    distributions(scene, panel),
    ...rows.map((row, i) => estimate(scene, row, panel + ROW * i)),
    axis(scene, bottom),
  );
}

/** @param {Rank[]} ranks @param {number} width @returns {Scene} */
function prepare(ranks, width) {
  const real = truth(ranks);
  const range = extent(ranks, real);
  const pixels = (width - GUTTER - RIGHT) / (range[1] - range[0]);
  const scene = { ranks, real, range, width, xs: [], top: 0, x: (value) => GUTTER + (value - range[0]) * pixels };
  scene.xs = abscissae(ranks, range);
  scene.top = Math.max(...scene.xs.map((value) => mixture(ranks, value)));
  return scene;
}

/** @param {Rank[]} ranks @param {Moments | null} real @returns {[number, number]} The visible range. */
function extent(ranks, real) {
  if (real === null) return [-3, 3];
  const reach = (mean, std) => [mean - std, mean + std];
  const seen = [
    ...ranks.filter(elements).flatMap((rank) => reach(rank.mean, 3.2 * Math.sqrt(variance(rank)))),
    ...MODES.map((mode) => combine(ranks, mode)).flatMap((c) => reach(c.mean, Math.sqrt(c.variance))),
  ];
  const [low, high] = [Math.min(...seen), Math.max(...seen)];
  const margin = 0.03 * (high - low) || 1;
  return [low - margin, high + margin];
}

/**
 * @param {Rank[]} ranks
 * @param {[number, number]} range
 * @returns {number[]} Even steps, and finer ones around each mean.
 */
function abscissae(ranks, [low, high]) {
  const even = Array.from({ length: 161 }, (_, i) => low + ((high - low) * i) / 160);
  const around = ranks
    .filter(smooth)
    .flatMap((rank) => Array.from({ length: 57 }, (_, i) => rank.mean + ((i - 28) * rank.std) / 7));
  return [...even, ...around].filter((value) => value >= low && value <= high).sort((a, b) => a - b);
}

/** @param {Rank} rank @returns {boolean} Whether it has a density: equal elements have a spike instead. */
function smooth(rank) {
  return variance(rank) > 0;
}

/**
 * @param {Rank} rank
 * @param {number} all Elements on all ranks.
 * @param {number} value
 * @returns {number} Density, times the share of the elements.
 */
function share(rank, all, value) {
  if (!smooth(rank)) return 0;
  return (
    ((elements(rank) / all) * Math.exp(-0.5 * ((value - rank.mean) / rank.std) ** 2)) /
    (rank.std * Math.sqrt(2 * Math.PI))
  );
}

/** @param {Rank[]} ranks @param {number} value @returns {number} The true density. */
function mixture(ranks, value) {
  const all = sum(ranks.map(elements));
  return sum(ranks.map((rank) => share(rank, all, value)));
}

/** The true mean and spread, behind everything. @param {Scene} scene @returns {SVGElement[]} */
function reference({ real, x }, panel, bottom) {
  if (real === null) return [];
  const std = Math.sqrt(real.variance);
  const [left, right] = [x(real.mean - std), x(real.mean + std)];
  return [
    svg("rect", { class: "band", x: left, y: panel, width: right - left, height: bottom - panel }),
    svg("line", { class: "true-mean", x1: x(real.mean), x2: x(real.mean), y1: HEAD, y2: bottom }),
  ];
}

/** @param {Scene} scene @param {number} panel @returns {SVGElement} */
function distributions(scene, panel) {
  const { ranks, x, top, xs, width } = scene;
  if (scene.real === null) {
    return svg("text", { class: "nothing", x: (GUTTER + width) / 2, y: panel / 2 }, "no elements on any rank");
  }
  const all = sum(ranks.map(elements));
  const y = (density) => panel - (panel - HEAD) * (top > 0 ? density / top : 0);
  const mass = (rank) => spikeHeight(rank, all, panel - HEAD);
  const lines = ranks.flatMap((rank, r) => {
    if (elements(rank) === 0) return [];
    const d = smooth(rank)
      ? curve(xs, x, (value) => y(share(rank, all, value)))
      : spike(x(rank.mean), panel - mass(rank), panel);
    return [svg("path", { class: "rank", "data-rank": r, d })];
  });
  const peaks = ranks.flatMap((rank, r) => {
    if (elements(rank) === 0) return [];
    return [{ ranks: [r], x: x(rank.mean), y: smooth(rank) ? y(share(rank, all, rank.mean)) : panel - mass(rank) }];
  });
  return svg(
    "g",
    {},
    svg("text", { class: "label", x: 0, y: panel - 6 }, "ranks"),
    silhouette(scene, panel, panel - HEAD),
    ...lines,
    ...clusters(peaks).map((peak) => svg("text", { class: "peak", x: peak.x, y: peak.y - 5 }, ranges(peak.ranks))),
    svg("line", { class: "ground", x1: GUTTER, x2: width - RIGHT, y1: panel, y2: panel }),
  );
}

/**
 * The true distribution as an area.
 *
 * @param {Scene} scene
 * @param {number} base
 * @param {number} height
 * @returns {SVGElement}
 */
function silhouette({ ranks, x, xs, top, real }, base, height) {
  if (real === null) return svg("g");
  const y = (value) => base - (top > 0 ? (height * mixture(ranks, value)) / top : 0);
  const all = sum(ranks.map(elements));
  const spikes = ranks
    .filter((rank) => elements(rank) > 0 && !smooth(rank))
    .map((rank) => spike(x(rank.mean), base - spikeHeight(rank, all, height), base));
  return svg(
    "g",
    {},
    svg("path", { class: "truth-area", d: `${curve(xs, x, y)} L${x(xs.at(-1))} ${base} L${x(xs[0])} ${base} Z` }),
    svg("path", { class: "truth-spike", d: spikes.join(" ") }),
  );
}

/** @returns {string} A path through the points. */
function curve(xs, x, y) {
  return "M" + xs.map((value) => `${x(value).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
}

/**
 * The height of the line for equal elements, which have no density: their share, but enough to be visible.
 *
 * @returns {number}
 */
function spikeHeight(rank, all, height) {
  return height * Math.max(elements(rank) / all, 0.04);
}

/** @returns {string} */
function spike(x, top, bottom) {
  return `M${x} ${bottom}V${top}`;
}

/**
 * Overlapping peaks share a label.
 *
 * @param {{ranks: number[], x: number, y: number}[]} peaks
 */
function clusters(peaks) {
  const merged = [];
  for (const peak of [...peaks].sort((a, b) => a.x - b.x)) {
    const near = merged.find((other) => Math.abs(other.x - peak.x) < 14 && Math.abs(other.y - peak.y) < 15);
    if (near) {
      near.ranks.push(...peak.ranks);
      near.y = Math.min(near.y, peak.y);
    } else merged.push({ ...peak });
  }
  return merged;
}

/** @param {number[]} numbers @returns {string} Such as "0–3" or "1, 3". */
function ranges(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const consecutive = sorted.length > 1 && sorted.at(-1) - sorted[0] === sorted.length - 1;
  return consecutive ? `${sorted[0]}–${sorted.at(-1)}` : sorted.join(", ");
}

/**
 * One row: mean ± standard deviation over the true distribution.
 *
 * @param {Scene} scene
 * @param {"truth" | import("./statistics.js").Mode} row
 */
function estimate(scene, row, y) {
  const { ranks, real, x, width } = scene;
  const computed = row === "truth" ? real : combine(ranks, row);
  const middle = y + ROW / 2 + 2;
  const group = svg(
    "g",
    { class: `estimate ${row}` },
    svg("text", { class: "label", x: 0, y: middle + 4 }, row === "truth" ? row : `'${row}'`),
    silhouette(scene, y + ROW, ROW - 10),
    svg("line", { class: "ground", x1: GUTTER, x2: width - RIGHT, y1: y + ROW, y2: y + ROW }),
  );
  if (computed !== null) group.append(...interval(computed, x, middle), mark(row, x(computed.mean), middle));
  return group;
}

/** @returns {SVGElement[]} */
function interval({ mean, variance: v }, x, y) {
  const [left, right] = [x(mean - Math.sqrt(v)), x(mean + Math.sqrt(v))];
  return [svg("path", { class: "interval", d: `M${left} ${y - 6}v12M${left} ${y}H${right}M${right} ${y - 6}v12` })];
}

/** Each mode has its own shape, so that readers can distinguish modes without color. @returns {SVGElement} */
export function mark(row, x, y) {
  const shapes = {
    truth: `M${x} ${y - 9}v18`,
    default: `M${x - 6} ${y}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z`,
    N: `M${x - 5.5} ${y - 5.5}h11v11h-11Z`,
    exact: `M${x} ${y - 7.5}l7.5 7.5l-7.5 7.5l-7.5 -7.5Z`,
  };
  return svg("path", { class: `mark ${row}`, d: shapes[row] });
}

/** @param {Scene} scene @param {number} y @returns {SVGElement} */
function axis({ range, x, width }, y) {
  const step = tickStep((range[1] - range[0]) / Math.max(2, (width - GUTTER) / 48));
  const first = Math.ceil(range[0] / step);
  const count = Math.floor(range[1] / step) - first + 1;
  const ticks = Array.from({ length: count }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  return svg(
    "g",
    { class: "axis" },
    ...ticks.flatMap((value) => [
      svg("line", { x1: x(value), x2: x(value), y1: y, y2: y + 5 }),
      svg("text", { x: x(value), y: y + 20 }, number(value, 6)),
    ]),
  );
}

/** @param {number} least @returns {number} The next of 1, 2, 5, 10, … */
function tickStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= least);
}

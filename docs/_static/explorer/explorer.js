/**
 * The page: ranks to edit on one side; drawing, numbers and formulas on the other. The link holds the whole case.
 *
 * @typedef {import("./statistics.js").Rank} Rank
 * @typedef {import("./statistics.js").Mode} Mode
 * @typedef {import("./statistics.js").Moments} Moments
 */

import { hidden, html, svg } from "./dom.js";
import { formula } from "./formula.js";
import { draw, mark } from "./plot.js";
import { FIELDS, MAX_RANKS, PRESETS, allowed, fromFragment, meansCase, requirement, toFragment } from "./state.js";
import { MODES, combine, elements, outputs, relativeErrors, truth } from "./statistics.js";
import { number, percent, summary } from "./words.js";

// Browsers limit changes of the address (Safari: 100 in 30 seconds).
const ADDRESS_DELAY = 350;

const SKELETON = `
  <fieldset class="presets"><legend>Cases</legend></fieldset>
  <p class="note"></p>
  <div class="bench">
    <div class="inputs">
      <table>
        <caption>What each rank holds</caption>
        <thead>
          <tr>
            <th scope="col">Rank</th>
            <th scope="col">Batch<span class="wide"> size</span></th>
            <th scope="col" colspan="2">Height × width</th>
            <th scope="col">Mean</th>
            <th scope="col"><abbr title="standard deviation">Std</abbr></th>
            <td></td>
          </tr>
        </thead>
        <tbody></tbody>
      </table>
      <p class="problem" role="alert"></p>
      <div class="actions">
        <button type="button" class="add">Add a rank</button>
        <button type="button" class="copy">Copy link to this case</button>
      </div>
      <p class="copied" role="status"></p>
      <label class="link" hidden>Link <input type="text" readonly /></label>
    </div>
    <figure>
      <svg role="img" aria-label="Distributions, and mean ± standard deviation by mode; the summary below has the errors."></svg>
      <figcaption>
        Above: the true distribution of all elements (area), and each rank's share of it (lines, numbered by rank).
        Below: mean (mark) ± standard deviation (bar) by mode, over the true distribution; the dashed line is the true
        mean, the band the true standard deviation.
      </figcaption>
    </figure>
  </div>
  <p class="summary" role="status"></p>
  <table class="results">
    <caption>What each mode computes, and its relative error</caption>
    <thead>
      <tr>
        <th scope="col">Mode</th>
        <th scope="col">Mean</th>
        <th scope="col">Variance</th>
        <th scope="col">Outputs<span class="wide">: mean ± std</span></th>
      </tr>
    </thead>
    <tbody></tbody>
  </table>
  <div class="formulas"></div>`;

/** One explorer in one element. */
class Explorer {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    root.innerHTML = SKELETON;
    this.find = (selector) => root.querySelector(selector);
    this.find(".presets").append(...PRESETS.map((preset) => this.presetButton(preset)));
    this.find(".add").addEventListener("click", () => this.add());
    this.find(".copy").addEventListener("click", () => this.copy());
    this.listenToInputs(this.find(".inputs tbody"));
    addEventListener("hashchange", () => this.load());
    new ResizeObserver(() => this.drawPlot()).observe(this.find("figure"));
    /** @type {Rank[]} */
    this.ranks = [];
    this.emphasized = -1;
    this.load();
  }

  /** Read the case from the address; ignore other fragments, such as a heading's. */
  load() {
    const linked = meansCase(location.hash);
    if (!linked && this.ranks.length > 0) return;
    const ranks = linked ? fromFragment(location.hash) : null;
    this.replace(ranks ?? PRESETS[0].ranks);
    if (linked && ranks === null) this.say(`The link contains no valid case. This is “${PRESETS[0].name}”.`);
  }

  /** @param {Rank[]} ranks */
  replace(ranks) {
    this.ranks = ranks.map((rank) => ({ ...rank }));
    this.find(".inputs tbody").replaceChildren(...this.ranks.map((rank, r) => inputRow(rank, r)));
    this.say("");
    this.render();
  }

  presetButton(preset) {
    const button = html("button", { type: "button" }, preset.name);
    button.addEventListener("click", () => {
      this.replace(preset.ranks);
      this.remember();
    });
    return button;
  }

  /** Add a copy of the last rank. */
  add() {
    this.replace([...this.ranks, this.ranks.at(-1)]);
    this.remember();
    this.input(this.ranks.length - 1, "n").focus();
  }

  /** @param {number} r */
  remove(r) {
    this.replace(this.ranks.filter((_, other) => other !== r));
    this.remember();
    // The focused button is gone: focus the next one, or the first input if no rank can be removed.
    const next = this.find(`.inputs tbody tr:nth-child(${Math.min(r + 1, this.ranks.length)}) .remove`);
    (next.disabled ? this.input(0, "n") : next).focus();
  }

  /** @param {HTMLElement} body */
  listenToInputs(body) {
    body.addEventListener("input", (event) => this.edit(event.target));
    body.addEventListener("focusout", (event) => this.settle(event.target));
    body.addEventListener("keydown", (event) => stepped(event) && this.edit(event.target));
    body.addEventListener("click", (event) => {
      const button = event.target.closest(".remove");
      if (button) this.remove(Number(button.dataset.rank));
    });
    for (const type of ["focusin", "pointerover"])
      body.addEventListener(type, (event) => this.emphasize(event.target.closest("tr")));
    for (const type of ["focusout", "pointerout"]) body.addEventListener(type, () => this.emphasize(null));
  }

  /** @param {number} r @param {keyof Rank} key @returns {HTMLInputElement} */
  input(r, key) {
    return this.find(`.inputs input[data-rank="${r}"][data-key="${key}"]`);
  }

  /** Apply a valid number at once; report an invalid one, and keep the last. */
  edit(input) {
    const field = FIELDS.find((candidate) => candidate.key === input.dataset.key);
    const valid = allowed(field, input.valueAsNumber);
    input.setAttribute("aria-invalid", String(!valid));
    this.say(valid ? "" : `${input.getAttribute("aria-label")}: ${requirement(field)}.`);
    if (!valid) return;
    this.ranks[Number(input.dataset.rank)][field.key] = input.valueAsNumber;
    this.render();
    this.remember();
  }

  /** Restore the last number when the reader leaves an invalid input. */
  settle(input) {
    if (input.getAttribute("aria-invalid") !== "true") return;
    input.value = String(this.ranks[Number(input.dataset.rank)][input.dataset.key]);
    input.setAttribute("aria-invalid", "false");
    this.say("");
  }

  /** @param {string} problem */
  say(problem) {
    this.find(".problem").textContent = problem;
  }

  /** @param {HTMLElement | null} row The row whose curve stands out. */
  emphasize(row) {
    this.emphasized = row ? row.rowIndex - 1 : -1;
    this.markEmphasized();
  }

  markEmphasized() {
    for (const path of this.root.querySelectorAll("svg .rank")) {
      path.classList.toggle("strong", Number(path.dataset.rank) === this.emphasized);
    }
  }

  /** Put the case into the address after a pause. */
  remember() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => history.replaceState(null, "", toFragment(this.ranks)), ADDRESS_DELAY);
  }

  async copy() {
    const link = new URL(toFragment(this.ranks), location.href).href;
    const field = this.find(".link");
    try {
      await navigator.clipboard.writeText(link);
      field.hidden = true;
      this.find(".copied").textContent = "Link copied.";
    } catch {
      // Without permission or encryption, the reader copies by hand.
      field.hidden = false;
      this.find(".copied").textContent = "Copy the link below.";
      this.find(".link input").value = link;
      this.find(".link input").select();
    }
  }

  render() {
    const { ranks } = this;
    const fragment = toFragment(ranks);
    const preset = PRESETS.find((candidate) => toFragment(candidate.ranks) === fragment);
    this.find(".presets")
      .querySelectorAll("button")
      .forEach((button, i) => {
        button.setAttribute("aria-pressed", String(PRESETS[i] === preset));
      });
    this.find(".note").textContent = preset?.note ?? "Your own case.";
    this.find(".copied").textContent = "";
    this.find(".link").hidden = true;
    this.find(".add").disabled = ranks.length === MAX_RANKS;
    this.find(".inputs tbody")
      .querySelectorAll("tr")
      .forEach((row, r) => {
        row.classList.toggle("empty", elements(ranks[r]) === 0);
        row.querySelector(".remove").disabled = ranks.length === 1;
      });
    this.find(".summary").textContent = summary(ranks);
    this.find(".results tbody").replaceChildren(...resultRows(ranks));
    this.find(".formulas").replaceChildren(...MODES.map((mode) => formula(ranks, mode)));
    this.drawPlot();
  }

  drawPlot() {
    const width = Math.floor(this.find("figure").clientWidth);
    if (width > 0) draw(this.find("figure svg"), this.ranks, width);
    this.markEmphasized();
  }
}

/** @param {Rank} rank @param {number} r @returns {HTMLElement} */
function inputRow(rank, r) {
  const cells = FIELDS.map((field) => {
    const input = html("input", {
      type: "number",
      min: field.min,
      max: field.max,
      step: field.whole ? 1 : "any", // any: accepts fractions between the arrow keys' steps
      value: rank[field.key],
      "data-rank": r,
      "data-key": field.key,
      "aria-label": `Rank ${r}, ${field.label}`,
    });
    return html("td", { class: field.key }, input);
  });
  const remove = html(
    "button",
    { type: "button", class: "remove", "data-rank": r, "aria-label": `Remove rank ${r}` },
    "×",
  );
  return html("tr", {}, html("th", { scope: "row" }, String(r)), ...cells, html("td", {}, remove));
}

/**
 * Handle arrow keys where the browser's step, 1, is too coarse.
 *
 * @param {KeyboardEvent} event
 * @returns {boolean} Whether the key was handled.
 */
function stepped(event) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  const field = FIELDS.find((candidate) => candidate.key === event.target.dataset.key);
  if (!direction || !field || field.whole) return false;
  const value = Number(((event.target.valueAsNumber || 0) + direction * field.step).toFixed(9));
  event.target.value = String(Math.min(Math.max(value, field.min), field.max));
  event.preventDefault();
  return true;
}

/** @param {Rank[]} ranks @returns {HTMLElement[]} */
function resultRows(ranks) {
  const real = truth(ranks);
  return [resultRow("truth", real, real), ...MODES.map((mode) => resultRow(mode, combine(ranks, mode), real))];
}

/** @param {"truth" | Mode} name @param {Moments | null} computed @param {Moments | null} real @returns {HTMLElement} */
function resultRow(name, computed, real) {
  const label = name === "truth" ? "truth" : `'${name}'`;
  const icon = svg(
    "svg",
    { class: `icon estimate ${name}`, width: 18, height: 18, "aria-hidden": "true" },
    mark(name, 9, 9),
  );
  const head = html("th", { scope: "row" }, icon, label);
  if (computed === null) return html("tr", {}, head, ...Array.from({ length: 3 }, () => html("td", {}, "none")));
  if (real === null) return html("tr", {}, head, ...["0", "0", "none"].map((text) => html("td", {}, text)));
  const { mean, std } = outputs(computed, real);
  const errors = name === "truth" ? null : relativeErrors(computed, real);
  return html(
    "tr",
    { class: name },
    head,
    html("td", {}, number(computed.mean), ...deviation(errors?.mean, computed.mean - real.mean)),
    html("td", {}, number(computed.variance), ...deviation(errors?.variance, computed.variance - real.variance)),
    html("td", {}, `${number(mean, 3)} ± ${number(std, 3)}`),
  );
}

/** @param {number | undefined} error @param {number} difference @returns {HTMLElement[]} */
function deviation(error, difference) {
  if (error === undefined) return [];
  const text = error === 0 ? "= truth" : percent(error, difference);
  return [html("span", { class: error === 0 ? "right" : "wrong" }, hidden(" error: "), text)];
}

if (typeof document !== "undefined") {
  for (const root of document.querySelectorAll(".explorer")) new Explorer(root);
}

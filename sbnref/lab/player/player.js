/**
 * Plays one or two recordings of kernels on the same clock.
 *
 * Every element of class `player` becomes a player; inside <details>, when these are opened. With `data-recordings`,
 * the address of a folder, it plays the recordings in `data-show`, such as `3-split+4-wide`, or lets readers choose from
 * the folder's index.json. Otherwise it plays the page's <script type="application/json" class="recording">.
 */

import { COLORS, Machine, SECTOR, SHUFFLE, TICKET, WARP, difference, plural } from "./machine.js";

const TREE = 24; // pixels, for the arcs of a shuffle
const SPEEDS = [1, 4, 16, 64, 256]; // steps a second
const COUNTERS = {
  asked: "bytes requested",
  sectors: "sectors moved",
  again: "sectors moved before",
  accesses: "accesses to memory",
  barriers: "waits at barriers",
  conflicts: "bank conflicts",
  steps: "instructions",
};
const CONTROLS = `
  <div class="choice" hidden>
    <label>Watch <select name="left"></select></label>
    <label>beside <select name="right"></select></label>
  </div>
  <div class="controls" role="group" aria-label="Player">
    <button type="button" name="first" aria-label="To the beginning">⏮</button>
    <button type="button" name="back" aria-label="One step back">◀</button>
    <button type="button" name="play">Play</button>
    <button type="button" name="forth" aria-label="One step on">▶</button>
    <button type="button" name="end" aria-label="To the end">⏭</button>
    <select name="speed" aria-label="Steps a second" title="Steps a second"></select>
    <input type="range" name="time" min="0" value="0" aria-label="Step" />
    <output></output>
  </div>
  <ul class="legend" aria-label="Colors">
    <li class="read">reads</li>
    <li class="write">writes</li>
    <li class="ticket">ticket</li>
    <li class="shared">shared memory</li>
    <li class="shuffle">shuffle</li>
    <li class="barrier">waits at a barrier</li>
    <li class="once">moved once</li>
    <li class="twice">moved again</li>
    <li class="cell">untouched</li>
  </ul>
  <p class="problem" role="alert"></p>
  <p class="difference" hidden><span></span> <button type="button" name="differ"></button></p>
  <div class="views"></div>`;

const VIEW = `
  <h3></h3>
  <p class="error" hidden></p>
  <div class="said"><p class="words" aria-live="polite"></p></div>
  <div class="side">
    <div>
      <h4>Lanes of the warps, by block · warp</h4>
      <canvas class="tree" aria-hidden="true"></canvas>
      <div class="lanes" tabindex="0" role="group" aria-label="Lanes of the warps">
        <canvas aria-hidden="true"></canvas>
      </div>
      <div class="shared-memory"></div>
      <h4>Memory, in sectors of ${SECTOR} bytes</h4>
      <div class="memory"></div>
    </div>
    <div class="text">
      <h4 class="file"></h4>
      <div class="source" tabindex="0" role="group" aria-label="Source"></div>
      <div class="within" hidden><h4></h4><div class="source excerpt"></div></div>
    </div>
  </div>
  <table class="counters"><caption>So far</caption><tbody></tbody></table>
  <details><summary>Every step in words</summary><ol></ol></details>`;

/** @param {string} tag @param {string} [text] */
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** A canvas of so many CSS pixels, empty. @returns {CanvasRenderingContext2D} */
function blank(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return pen;
}

/** One recording: lanes, memory, source and counters at a time. */
class View {
  constructor(recording, colors) {
    this.machine = new Machine(recording);
    this.recording = recording;
    this.colors = colors;
    this.root = element("section", "", "view");
    this.root.innerHTML = VIEW;
    this.find = (selector) => this.root.querySelector(selector);
    const layout = recording.channelsLast ? "channels-last" : "contiguous";
    this.find("h3").textContent = `${recording.title}, on (${recording.shape.join(", ")}) ${layout}`;
    this.find(".error").hidden = recording.error === null;
    this.find(".error").textContent = `The recording ends early: ${recording.error}`;
    this.reserve();
    this.fillCounters();
    this.extents = recording.arrays.map((_, i) => this.extent(i));
    this.strips = recording.arrays.map((array, i) => this.strip(array, this.extents[i]));
    this.find("details").addEventListener("toggle", () => this.fillWords(), { once: true });
  }

  /** Room for the longest sentence and for a helper's source, so that nothing moves while it plays. */
  reserve() {
    const longest = this.sentences().reduce((a, b) => (b.length > a.length ? b : a), "");
    this.find(".said").dataset.longest = longest;
    this.find(".within").hidden = !this.recording.sites.some((site) => site.length > 1);
  }

  /** A sentence for each step. @returns {string[]} */
  sentences() {
    const machine = new Machine(this.recording);
    return machine.steps.map((_, i) => {
      machine.goTo(i + 1);
      return machine.words;
    });
  }

  fillCounters() {
    this.cells = {};
    for (const [key, said] of Object.entries(COUNTERS)) {
      const row = element("tr");
      const head = element("th", said);
      head.scope = "row";
      this.cells[key] = element("td");
      this.cells[key].dataset.count = key;
      row.append(head, this.cells[key]);
      this.find("tbody").append(row);
    }
  }

  /** Bytes of an array to draw: up to the last one accessed, where that is less than half of it. */
  extent(index) {
    const { size } = this.recording.arrays[index];
    const ends = this.machine.steps.filter((step) => step.array === index).map((s) => Math.max(...s.offsets) + s.bytes);
    const last = Math.max(...ends);
    return last < size / 2 ? last : size;
  }

  strip(array, extent) {
    const figure = element("figure");
    const size = plural(array.size, "byte") + (array.shared ? " shared by a block, in 32 banks" : "");
    const part = extent < array.size ? `, of which only the first ${extent} are accessed` : "";
    figure.append(element("figcaption", `${array.name}, ${size}${part}`), element("canvas"));
    figure.lastChild.setAttribute("aria-hidden", "true");
    this.find(array.shared ? ".shared-memory" : ".memory").append(figure);
    return figure;
  }

  fillWords() {
    for (const words of this.sentences()) this.find("ol").append(element("li", words.replace(/^Step \d+: /, "")));
  }

  /** Shows the state after a number of steps. */
  show(time, playing) {
    this.machine.goTo(time);
    const { counts } = this.machine;
    const shown = { ...counts, asked: counts.read + counts.written };
    for (const [key, cell] of Object.entries(this.cells)) cell.textContent = shown[key].toLocaleString("en");
    this.find(".words").setAttribute("aria-live", playing ? "off" : "polite");
    this.find(".words").textContent = this.machine.words;
    this.find(".error").classList.toggle("now", this.machine.time === this.machine.steps.length);
    this.draw();
    this.showSource();
  }

  /** @returns {(name: string, pale?: boolean) => string} The colors of the current theme. */
  get ink() {
    const now = {};
    for (const name of [...new Set(COLORS), "once", "twice", "cell"])
      now[name] = getComputedStyle(this.colors.querySelector(`.${name}`), "::before").backgroundColor;
    return now;
  }

  draw() {
    const width = this.find(".lanes").clientWidth;
    if (width === 0) return;
    this.left = 58;
    this.cell = Math.max(5, Math.min(14, Math.floor((width - this.left - 2) / WARP)));
    const ink = this.ink;
    this.drawLanes(ink);
    this.recording.arrays.forEach((array, i) => {
      if (array.shared) this.drawBanks(array, i, ink);
      else this.drawSectors(array, i, ink, width);
    });
  }

  drawLanes(ink) {
    const { machine, cell, left } = this;
    const box = this.find(".lanes");
    const [height, step] = [cell + 3, machine.last];
    const pen = blank(box.querySelector("canvas"), left + WARP * cell, machine.rows.length * height + 2);
    const now = step === null ? -1 : step.block * machine.warps + step.warp;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    machine.rows.forEach((row, i) => {
      const y = i * height + 2;
      pen.globalAlpha = 1;
      pen.fillStyle = getComputedStyle(box).color;
      const name = `${Math.floor(i / machine.warps)} · ${i % machine.warps}`;
      if (cell >= 9 || i % 2 === 0) pen.fillText(name, 16, y + cell / 2);
      if (i === now) pen.fillText("▶", 1, y + cell / 2);
      for (let lane = 0; lane < WARP; lane++) {
        const active = row.waits || row.lanes.includes(lane);
        pen.fillStyle = active ? ink[row.waits ? "barrier" : COLORS[row.act]] : ink.cell;
        pen.globalAlpha = !active || i === now || row.waits ? 1 : 0.3;
        pen.fillRect(left + lane * cell, y, cell - 1, cell - 1);
      }
    });
    pen.globalAlpha = 1;
    this.drawShuffle(step, ink);
    const above = now * height;
    if (now >= 0 && (above < box.scrollTop || above + 3 * height > box.scrollTop + box.clientHeight))
      box.scrollTop = above - box.clientHeight / 3;
  }

  /** Above the lanes: an arc from each lane to the lane that takes its value. */
  drawShuffle(step, ink) {
    const pen = blank(this.find(".tree"), this.left + WARP * this.cell, TREE);
    const middle = (lane) => this.left + (lane + 0.45) * this.cell;
    pen.strokeStyle = ink.shuffle;
    if (step?.act !== SHUFFLE) return;
    step.lanes.forEach((lane, i) => {
      const from = step.offsets[i];
      if (from === lane) return;
      pen.beginPath();
      pen.moveTo(middle(from), TREE);
      pen.quadraticCurveTo((middle(from) + middle(lane)) / 2, -TREE, middle(lane), TREE);
      pen.stroke();
    });
  }

  /** A column for each bank, below the lanes. */
  drawBanks(array, index, ink) {
    const { machine, cell, left } = this;
    const step = machine.last;
    const words = Math.ceil(this.extents[index] / 4);
    const height = words > WARP ? 6 : cell;
    const pen = blank(this.strips[index].lastChild, left + WARP * cell, Math.ceil(words / WARP) * height);
    const lit = new Set();
    if (step?.array === index)
      for (const offset of step.offsets) for (let b = 0; b < step.bytes; b += 4) lit.add(Math.floor((offset + b) / 4));
    for (let word = 0; word < words; word++) {
      pen.fillStyle = lit.has(word) ? ink.shared : ink.cell;
      pen.fillRect(left + (word % WARP) * cell, Math.floor(word / WARP) * height, cell - 1, height - 1);
    }
  }

  drawSectors(array, index, ink, width) {
    const { machine, cell } = this;
    const step = machine.last;
    const first = Math.floor(array.start / SECTOR);
    const sectors = Math.floor((array.start + this.extents[index] - 1) / SECTOR) - first + 1;
    const columns = Math.max(8, Math.floor(width / cell / 8) * 8);
    const pen = blank(this.strips[index].lastChild, columns * cell, Math.ceil(sectors / columns) * (cell + 1));
    const lit = step !== null && step.act <= TICKET && step.array === index ? machine.sectors(step) : new Set();
    for (let i = 0; i < sectors; i++) {
      const times = machine.moved.get(first + i) ?? 0;
      pen.fillStyle = lit.has(first + i) ? ink[COLORS[step.act]] : ink[["cell", "once"][times] ?? "twice"];
      pen.fillRect((i % columns) * cell, Math.floor(i / columns) * (cell + 1), cell - 1, cell);
    }
  }

  /** The line of the kernel, and the line of the helper that it calls, if any. */
  showSource() {
    const { last, steps } = this.machine;
    const site = this.recording.sites[(last ?? steps[0])?.site] ?? [];
    const [inner, outer] = [site[0], site.at(-1)];
    if (outer) this.showLine(this.find(".source"), this.find(".file"), outer);
    const within = this.find(".within");
    within.classList.toggle("empty", site.length < 2);
    if (site.length > 1) this.showLine(within.querySelector(".source"), within.firstChild, inner, "which calls ");
  }

  showLine(box, title, [file, line], said = "") {
    const { name, text } = this.recording.files[file];
    title.textContent = `${said}${name}, line ${line}`;
    if (box.dataset.file !== name) {
      box.dataset.file = name;
      box.replaceChildren(...text.trimEnd().split("\n").map((words) => element("code", words)));
    }
    box.querySelector(".current")?.removeAttribute("class");
    const now = box.children[line - 1];
    if (!now) return;
    now.className = "current";
    box.scrollTop = now.offsetTop - (box.clientHeight - now.offsetHeight) / 2;
  }
}

/** The clock, and the views that follow it. */
class Player {
  constructor(root) {
    this.root = root;
    root.innerHTML = CONTROLS;
    this.find = (name) => root.querySelector(`[name=${name}]`);
    this.views = [];
    this.time = null; // until there are recordings
    this.timer = null;
    this.find("speed").append(...SPEEDS.map((speed) => new Option(`${speed}/s`, speed)));
    this.find("speed").value = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1 : 16;
    this.listen();
  }

  listen() {
    const moves = {
      first: () => 0, back: () => this.time - 1, forth: () => this.time + 1, end: () => this.length,
      differ: () => this.differ,
    }; // prettier-ignore
    for (const [name, to] of Object.entries(moves)) this.find(name).addEventListener("click", () => this.goTo(to()));
    this.find("time").addEventListener("input", (event) => this.goTo(Number(event.target.value)));
    this.find("play").addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
    this.find("speed").addEventListener("change", () => this.timer !== null && this.play());
    this.root.addEventListener("keydown", (event) => this.key(event, moves));
    new ResizeObserver(() => this.redraw()).observe(this.root);
    new MutationObserver(() => this.redraw()).observe(document.body, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** Arrows step, Home and End jump, p plays, wherever the focus is in the player, except in a list. */
  key(event, moves) {
    if (event.target.matches("select") || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = { ArrowLeft: "back", ArrowRight: "forth", Home: "first", End: "end" }[event.key];
    if (to) this.goTo(moves[to]());
    else if (event.key === "p") this.find("play").click();
    else return;
    event.preventDefault();
  }

  get length() {
    return Math.max(0, ...this.views.map((view) => view.machine.steps.length));
  }

  /** @param {object[]} recordings */
  show(recordings) {
    this.root.querySelector(".problem").textContent = "";
    this.pause();
    this.views = recordings.map((recording) => new View(recording, this.root.querySelector(".legend")));
    this.root.querySelector(".views").replaceChildren(...this.views.map((view) => view.root));
    this.find("time").max = this.length;
    this.compare(recordings);
    this.setTime(this.time ?? Math.max(0, ...this.views.map((view) => view.machine.firstAccess)));
  }

  /** Shows where two recordings differ. */
  compare([left, right]) {
    const line = this.root.querySelector(".difference");
    line.hidden = !right;
    if (!right) return;
    const { step, words } = difference(left, right);
    this.differ = step;
    line.firstChild.textContent = words;
    this.find("differ").hidden = step === 0;
    this.find("differ").textContent = `Go to step ${step}`;
  }

  /** @param {Error} error Of loading. */
  fail(error) {
    this.root.querySelector(".problem").textContent = `The recordings could not be loaded: ${error.message}`;
  }

  /** Stops playing, and goes to a step. */
  goTo(time) {
    this.pause();
    this.setTime(time);
  }

  setTime(time) {
    this.time = Math.max(0, Math.min(time, this.length));
    this.find("time").value = this.time;
    this.root.querySelector("output").textContent = `step ${this.time} of ${this.length}`;
    this.redraw();
  }

  redraw() {
    for (const view of this.views) view.show(this.time, this.timer !== null);
  }

  play() {
    clearInterval(this.timer);
    if (this.time >= this.length) this.setTime(0);
    const speed = Number(this.find("speed").value);
    const pace = Math.ceil(speed / 32); // steps a tick: a screen cannot show more ticks
    this.timer = setInterval(() => {
      this.setTime(this.time + pace);
      if (this.time >= this.length) this.pause();
    }, (1000 * pace) / speed);
    this.find("play").textContent = "Pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.find("play").textContent = "Play";
    this.redraw();
  }
}

/** Readers choose recordings; the choice is the page's fragment, `#1-naive` or `#3-split+4-wide@12`, at step 12. */
class Choice {
  constructor(player, folder, index) {
    Object.assign(this, { player, folder, names: Object.keys(index) });
    player.root.querySelector(".choice").hidden = false;
    const options = () => Object.entries(index).map(([name, title]) => new Option(title, name));
    player.find("left").append(...options());
    player.find("right").append(new Option("nothing else", ""), ...options());
    for (const side of ["left", "right"])
      player.find(side).addEventListener("change", () => {
        history.replaceState(null, "", `#${this.chosen.join("+")}`);
        this.show();
      });
    addEventListener("hashchange", () => this.read());
    this.read();
  }

  get chosen() {
    return ["left", "right"].map((side) => this.player.find(side).value).filter(Boolean);
  }

  read() {
    const [names, step] = decodeURIComponent(location.hash.slice(1)).split("@");
    const [left, right = ""] = names.split("+");
    if (this.names.includes(left)) {
      this.player.time = /^\d+$/.test(step) ? Number(step) : null;
      this.player.find("left").value = left;
      this.player.find("right").value = this.names.includes(right) ? right : "";
    }
    return this.show();
  }

  async show() {
    const { chosen } = this;
    try {
      const recordings = await load(this.folder, chosen);
      if (chosen.join() === this.chosen.join()) this.player.show(recordings);
    } catch (error) {
      this.player.fail(error);
    }
  }
}

const loaded = new Map(); // recordings, by address

/** @param {string} folder @param {string[]} names @returns {Promise<object[]>} Recordings; each is fetched once. */
function load(folder, names) {
  return Promise.all(
    names.map(async (name) => {
      const address = `${folder}/${name}.json`;
      if (!loaded.has(address)) loaded.set(address, await fetchJson(address));
      return loaded.get(address);
    }),
  );
}

async function fetchJson(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}

function start(root) {
  const { recordings: folder, show } = root.dataset;
  const player = new Player(root);
  if (show) {
    load(folder, show.split("+"))
      .then((recordings) => player.show(recordings))
      .catch((error) => player.fail(error));
  } else if (folder) {
    fetchJson(`${folder}/index.json`)
      .then((index) => new Choice(player, folder, index))
      .catch((error) => player.fail(error));
  } else {
    const held = [...document.querySelectorAll("script.recording")];
    player.show(held.map((script) => JSON.parse(script.textContent)));
  }
}

for (const root of document.querySelectorAll(".player")) {
  const closed = root.closest("details:not([open])");
  if (closed) closed.addEventListener("toggle", () => start(root), { once: true });
  else start(root);
}

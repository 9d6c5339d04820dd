/**
 * Plays back a recording: the state of every warp, of memory and of the counters after any number of steps. No drawing.
 *
 * @typedef {{ act: number, site: number, block: number, warp: number, lanes: number[], array: number, bytes: number,
 *   conflicts: number, offsets: number[] }} Step  One instruction of a warp, as in sbnref.lab.
 */

export const WARP = 32;
export const SECTOR = 32; // bytes
export const [READ, WRITE, TICKET, READ_SHARED, WRITE_SHARED, SHUFFLE, BARRIER] = [0, 1, 2, 3, 4, 5, 6];

/** The name of an act's color. */
export const COLORS = ["read", "write", "ticket", "shared", "shared", "shuffle", "barrier"];

/** @param {any[]} row as Recording.to_dict writes a step. @returns {Step} */
function decode([act, site, block, warp, bits, array = -1, bytes = 0, conflicts = 0, first = 0, stride = 0]) {
  const lanes = [...Array(WARP).keys()].filter((lane) => (bits >>> lane) & 1);
  const at = (lane) => first + (lane - lanes[0]) * stride;
  const from = (lane) => (lane + first < WARP ? lane + first : lane); // a shuffle's source lane
  const offsets = Array.isArray(first) ? first : lanes.map(act === SHUFFLE ? from : at);
  return { act, site, block, warp, lanes, array, bytes, conflicts, offsets };
}

export class Machine {
  /** @param {object} recording as Recording.to_dict gives it. */
  constructor(recording) {
    this.recording = recording;
    this.steps = recording.steps.map(decode);
    this.reset();
  }

  reset() {
    this.time = 0; // steps done
    this.launch = -1;
    this.counts = { read: 0, written: 0, sectors: 0, again: 0, accesses: 0, barriers: 0, conflicts: 0, steps: 0 };
    this.moved = new Map(); // number of moves by sector
    this.before = 0; // sectors of the last step that were moved before
    this.begin(0);
  }

  /** Starts the next kernel: no steps done, and shared memory empty. */
  begin(launch) {
    this.launch = launch;
    const { blocks = 0, threads = 0 } = this.recording.launches[launch] ?? {};
    this.warps = threads / WARP;
    this.rows = Array.from({ length: blocks * this.warps }, () => ({ lanes: [], act: null, waits: false }));
  }

  /** The step that accesses memory first, counted from 1; 0 if none does. */
  get firstAccess() {
    return this.steps.findIndex((step) => step.act <= WRITE_SHARED) + 1;
  }

  /** The step done last; null before the first. @returns {Step | null} */
  get last() {
    return this.steps[this.time - 1] ?? null;
  }

  /** @param {number} time Steps to have done. */
  goTo(time) {
    if (time < this.time) this.reset();
    while (this.time < Math.min(time, this.steps.length)) this.apply(this.steps[this.time]);
  }

  /** @param {Step} step */
  apply(step) {
    const { launches } = this.recording;
    while (launches[this.launch + 1]?.begin <= this.time) this.begin(this.launch + 1);
    this.time += 1;
    const { counts } = this;
    counts.steps += 1;
    counts.conflicts += step.conflicts;
    this.before = 0;
    if (step.act <= TICKET) {
      counts[step.act === READ ? "read" : "written"] += step.bytes * step.lanes.length;
      counts.accesses += 1;
      for (const sector of this.sectors(step)) {
        const times = this.moved.get(sector) ?? 0;
        this.moved.set(sector, times + 1);
        counts.sectors += 1;
        this.before += times > 0;
      }
      counts.again += this.before;
    }
    const row = this.rows[step.block * this.warps + step.warp];
    Object.assign(row, { lanes: step.lanes, act: step.act, waits: step.act === BARRIER });
    counts.barriers += row.waits;
    const block = this.rows.slice(step.block * this.warps, (step.block + 1) * this.warps);
    if (block.every((other) => other.waits)) for (const other of block) other.waits = false;
  }

  /** The sectors that a step touches in global memory. @param {Step} step @returns {Set<number>} */
  sectors(step) {
    const { start } = this.recording.arrays[step.array];
    const touched = new Set();
    for (const offset of step.offsets) {
      const last = Math.floor((start + offset + step.bytes - 1) / SECTOR);
      for (let s = Math.floor((start + offset) / SECTOR); s <= last; s++) touched.add(s);
    }
    return touched;
  }

  /** The step done last, in a sentence. */
  get words() {
    const step = this.last;
    if (step === null) return "Before the first instruction.";
    const { kernel } = this.recording.launches[this.launch];
    const who = `${kernel}, block ${step.block}, warp ${step.warp}`;
    return `Step ${this.time}: ${who}: ${lanesInWords(step.lanes)} ${this.actInWords(step)}.`;
  }

  /** The parts of a step to compare between two recordings: not its line, nor the name of a shared array. */
  essence(index) {
    const step = this.steps[index];
    const { name, shared } = this.recording.arrays[step?.array] ?? {};
    return JSON.stringify({ ...step, site: null, array: shared || name });
  }

  actInWords(step) {
    const { name } = this.recording.arrays[step.array] ?? {};
    const s = step.lanes.length === 1 ? "s" : "";
    if (step.act === BARRIER) return `wait${s} at a barrier for the other warps of the block`;
    if (step.act === SHUFFLE)
      return `take${s} another lane's value: lane ${step.lanes[0]} takes lane ${step.offsets[0]}'s`;
    if (step.act >= READ_SHARED) {
      const of = `${plural(step.bytes, "byte")}${s ? "" : " each"} of ${name} in shared memory`;
      const conflicts = step.conflicts ? `, with ${plural(step.conflicts, "bank conflict")}` : "";
      return `${step.act === READ_SHARED ? "read" : "write"}${s} ${of}${conflicts}`;
    }
    const size = this.sectors(step).size;
    const before = this.before ? `, ${this.before} of them moved before` : "";
    const of = `${plural(step.bytes * step.lanes.length, "byte")} of ${name}, ${plural(size, "sector")}${before}`;
    return step.act === TICKET ? `take${s} a ticket, ${of}` : `${step.act === READ ? "read" : "write"}${s} ${of}`;
  }
}

/**
 * The first step in which two recordings differ, counted from 1, and a sentence about it; step 0 if there is none.
 *
 * @param {object} left @param {object} right Recordings. @returns {{ step: number, words: string }}
 */
export function difference(left, right) {
  const [a, b] = [new Machine(left), new Machine(right)];
  const length = Math.max(a.steps.length, b.steps.length);
  let step = 1;
  while (step <= length && a.essence(step - 1) === b.essence(step - 1)) step++;
  if (step > length) return { step: 0, words: "The two do the same at every step." };
  const [one, other] = [a, b].map((machine) => machine.steps[step - 1]);
  const together = one?.block === other?.block && one?.warp === other?.warp;
  const [first, second] = [a, b].map((machine) => {
    machine.goTo(step);
    if (machine.time < step) return "the recording has ended";
    const { lanes, block, warp } = machine.last;
    const where = together ? "" : ` of block ${block}, warp ${warp}`;
    return `${lanesInWords(lanes)}${where} ${machine.actInWords(machine.last)}`;
  });
  const both = `in both, ${first}, but with different lanes or addresses`;
  const how = first === second ? both : `in ${left.title}, ${first}; in ${right.title}, ${second}`;
  return { step, words: `The two differ first at step ${step}: ${how}.` };
}

/** @param {number[]} lanes */
function lanesInWords(lanes) {
  if (lanes.length === WARP) return "all lanes";
  if (lanes.length === 1) return `lane ${lanes[0]}`;
  const run = lanes.at(-1) - lanes[0] === lanes.length - 1;
  return run ? `lanes ${lanes[0]} to ${lanes.at(-1)}` : `${lanes.length} lanes`;
}

/** @param {number} count @param {string} what */
export function plural(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

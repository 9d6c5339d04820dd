"""Interpret PTX, nvcc's input to the GPU assembler; only the instructions that the kernels use are supported.

A launch runs its blocks one after another. The threads of a block are lanes of numpy arrays, one array per register.
Lanes at the same instruction run together; after a branch, the lanes furthest behind in the text run first. At a
barrier or a shuffle, lanes wait for the others.

Arithmetic is done in the instruction's type and rounded once per instruction. An approximate division is rounded
correctly, which is one of the results that a GPU may return. An unknown instruction or an access outside the known
memory is an error that names the kernel and the instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WARP = 32
SHARED, PARAMETERS = 1 << 60, 1 << 61  # base addresses of these spaces
SPACES = {"global": 0, "shared": SHARED, "param": PARAMETERS}
TYPES = {f"{kind}{8 * n}": np.dtype(f"{code}{n}") for kind, code in ("uu", "si", "bu") for n in (1, 2, 4, 8)}
TYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}
TYPES |= {"bf16": np.dtype("u2")}  # numpy has no bfloat16: the bits

_COMMENT = re.compile(r"//[^\n]*")
_VARIABLE = r"\.%s\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?"
_INNER_SCOPE = re.compile(r"\{([^{}]*\.reg[^{}]*)\}")
_STATEMENT = re.compile(r"[\s{}]*(?:(?P<label>[\w$]+):|(?P<text>[^\s;{}][^;]*);)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class PtxError(RuntimeError):
    """Raised for a fault that would stop a GPU, or for an unsupported instruction."""


def parse(text: str) -> dict[str, Kernel]:
    """Return the kernels of a program by their mangled names."""
    before, *entries = _COMMENT.sub("", text).split(".entry")
    dynamic = re.search(r"\.extern\s+\.shared[^;]*?([\w$]+)\[\];", before)
    kernels = {}
    for entry in entries:
        header, _, body = entry.partition("{")
        name = re.findall(r"[\w$]+", header)[0]
        kernels[name] = Kernel(name, header, body, dynamic[1] if dynamic else None)
    return kernels


def _lay_out(variables: list[tuple[str, str, str, str]]) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the offset and the size of each variable, and the size of all."""
    places, end = {}, 0
    for align, kind, name, count in variables:
        width = TYPES[kind].itemsize
        offset = _up(end, int(align or width))
        end = offset + width * int(count or 1)
        places[name] = offset, end - offset
    return places, end


def _up(offset: int, align: int) -> int:
    return -(-offset // align) * align


@dataclass
class Instruction:
    text: str
    guard: str | None  # the predicate, with its "!"
    parts: list[str]  # of the opcode
    operands: list[str]

    @property
    def waits(self) -> bool:  # for other lanes
        return self.parts[0] in ("shfl", "bar")


class Kernel:
    """One entry of a program.

    Attributes:
        parameters: offset and size of each parameter.
        registers: the type of each kind of register, such as ``%rd``.
        shared: offset of each shared array.
        shared_size: bytes, without dynamic shared memory.
        runs: sequences of instructions. An instruction at which lanes wait is a run; a branch ends a run.
        labels: the run after each label.
        fences: number executed so far by all threads.
    """

    def __init__(self, name: str, header: str, body: str, dynamic_shared: str | None) -> None:
        self.name, self._body, self.fences = name, body, 0
        self.parameters, _ = _lay_out(re.findall(_VARIABLE % "param", header))
        shared, self.shared_size = _lay_out(re.findall(_VARIABLE % "shared", body))
        self.shared = {array: offset for array, (offset, _) in shared.items()}
        if dynamic_shared is not None:
            self.shared_size = self.shared[dynamic_shared] = _up(self.shared_size, 16)
        self.registers = {stem: TYPES[kind] for kind, stem in re.findall(r"\.reg\s+\.(\w+)\s+(%[a-z]+)", body)}
        self._blocks: dict[tuple[int, bool], Block] = {}

    @cached_property
    def _code(self) -> tuple[list[list[Instruction]], dict[str, int]]:
        def renamed(scope: re.Match[str]) -> str:  # a scope's registers may share names with outer ones
            own = set(re.findall(r"\.reg\s+\.\w+\s+(%\w+)", scope[1]))
            return re.sub(r"%\w+", lambda name: f"{name[0]}@{scope.start()}" if name[0] in own else name[0], scope[1])

        body = _INNER_SCOPE.sub(renamed, self._body)
        runs: list[list[Instruction]] = [[]]
        labels: dict[str, int] = {}
        for match in _STATEMENT.finditer(body):
            if label := match["label"]:
                if runs[-1]:
                    runs.append([])
                labels[label] = len(runs) - 1
            elif not match["text"].startswith("."):  # a declaration
                text = " ".join(match["text"].split())
                guard, opcode, operands = re.fullmatch(r"(?:@(\S+) )?(\S+) ?(.*)", text).groups()  # type: ignore[union-attr]
                instruction = Instruction(text, guard, opcode.split("."), _OPERAND.findall(operands))
                if instruction.waits and runs[-1]:
                    runs.append([])
                runs[-1].append(instruction)
                if instruction.waits or instruction.parts[0] in ("bra", "ret"):
                    runs.append([])
        return runs, labels

    runs = property(lambda self: self._code[0])
    labels = property(lambda self: self._code[1])

    def launch(
        self, blocks: int, threads: int, shared_bytes: int, arguments: bytes, memory: dict[int, np.ndarray], fused: bool
    ) -> None:
        """Run the kernel; on failure, raise a :class:`PtxError` that names the kernel and the instruction.

        Args:
            shared_bytes: bytes of dynamic shared memory.
            arguments: the parameters, laid out as in :attr:`parameters`.
            memory: the accessible memory, arrays of uint8 by address.
            fused: round a fused multiply-add once, as a GPU does; otherwise also round its product.
        """
        if threads % WARP:
            raise PtxError(f"{self.name}: expected whole warps of {WARP} threads, got {threads} threads")
        if (threads, fused) not in self._blocks:
            self._blocks[threads, fused] = Block(self, threads, fused)
        shared = np.empty(self.shared_size + shared_bytes, np.uint8)
        everything = Memory({**memory, SHARED: shared, PARAMETERS: np.frombuffer(arguments, np.uint8)})
        for index in range(blocks):
            shared.fill(0xFF)  # garbage
            with np.errstate(all="ignore"):
                self._blocks[threads, fused].run(index, blocks, everything)


class Memory:
    def __init__(self, pieces: dict[int, np.ndarray]) -> None:
        self._starts = np.array(sorted(address for address, piece in pieces.items() if len(piece)), np.uint64)
        self._pieces = [pieces[address] for address in self._starts.tolist()]
        self._ends = self._starts + np.array([len(piece) for piece in self._pieces], np.uint64)

    def _access(self, addresses: np.ndarray, dtype: np.dtype, count: int) -> Iterator[tuple]:
        """Yield, for each piece, a mask of the addresses in it, its words, and the first word of each address."""
        size = np.uint64(dtype.itemsize * count)
        found = np.searchsorted(self._starts, addresses, "right") - 1
        outside = (found < 0) | (addresses + size > self._ends[found])
        for wrong, what in ((outside, "outside of every buffer"), (addresses % size > 0, "misaligned")):
            if wrong.any():
                raise IndexError(f"{size} bytes at {int(addresses[wrong][0]):#x} are {what}")
        for piece in [found[0]] if (found == found[0]).all() else np.unique(found):
            which = found == piece
            words = self._pieces[piece]
            words = words[: len(words) // dtype.itemsize * dtype.itemsize].view(dtype)
            yield which, words, (addresses[which] - self._starts[piece]).astype(np.int64) // dtype.itemsize

    def load(self, addresses: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:  # (count, len(addresses))
        values = np.empty((count, len(addresses)), dtype)
        for which, words, at in self._access(addresses, dtype, count):
            values[:, which] = words[at + np.arange(count)[:, None]]
        return values

    def store(self, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        for which, words, at in self._access(addresses, values[0].dtype, len(values)):
            for k, value in enumerate(values):
                words[at + k] = value[which]


Step = Callable[[np.ndarray], object]  # runs an instruction on the active lanes

COMPUTED: dict[str, Callable[..., np.ndarray]] = {  # by opcode without type and ".rn"
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "mul.lo": np.multiply, "neg": np.negative},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert},
    **{"min": np.fmin, "max": np.fmax, "abs": np.abs, "rem": np.fmod, "sqrt": np.sqrt, "mov": np.asarray},
    "mad.lo": lambda a, b, c: a * b + c,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else (a - np.fmod(a, b)) // b,  # rounded towards zero
    "div.approx": np.divide,
    "rcp": np.reciprocal,
}
COMPARISONS: dict[str, Callable[..., np.ndarray]] = {  # with a "u": true of NaN
    **{"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    "ne": lambda a, b: (a < b) | (a > b),
    **{"neu": np.not_equal, "ltu": lambda a, b: ~(a >= b), "leu": lambda a, b: ~(a > b)},
    **{"gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b)},
}


class Block:
    """The threads of a block; a launch reuses them for one block after another.

    The method of an opcode returns the step of an instruction, or None for an unknown instruction.
    """

    def __init__(self, kernel: Kernel, threads: int, fused: bool) -> None:
        self.kernel, self.threads, self.fused = kernel, threads, fused
        self._steps: dict[int, list[tuple[Instruction, Step]]] = {}
        self.lane = np.arange(threads, dtype=np.uint32)
        self._arrays = {name: np.zeros(threads, np.uint32) for name in ("%ctaid.x", "%nctaid.x")}
        self._arrays |= {"%tid.x": self.lane, "%ntid.x": np.full(threads, threads, np.uint32)}
        self._waits = np.array([any(i.waits for i in run) for run in kernel.runs] + [True])

    # ---- scheduling ----

    def run(self, index: int, blocks: int, memory: Memory) -> None:
        self.memory = memory
        self._arrays["%ctaid.x"].fill(index)
        self._arrays["%nctaid.x"].fill(blocks)
        self._at = np.zeros(self.threads, np.int64)  # the run of each lane
        while (place := self._next()) < len(self.kernel.runs):
            active = self._complete(place) if self._waits[place] else self._at == place
            self._at[active] = place + 1
            for instruction, step in self._bound(place):
                try:
                    step(active)
                except IndexError as error:
                    raise self._error(instruction, str(error)) from error

    def _next(self) -> int:
        """Return the first run with lanes that need not wait; without one, the first run with complete lanes."""
        free = self._at[~self._waits[self._at]]
        if free.size:
            return int(free.min())
        waiting = [place for place in np.unique(self._at).tolist() if place < len(self.kernel.runs)]
        for place in waiting:
            if self._complete(place).any():
                return place
        if not waiting:
            return len(self.kernel.runs)
        first, *others = [self.kernel.runs[place][0] for place in waiting]
        where = " and ".join(f"at `{other.text}`" for other in others) or "have returned"
        count = (self._at == waiting[0]).sum()
        raise self._error(first, f"{count} of {self.threads} threads wait, the others {where}")

    def _complete(self, place: int) -> np.ndarray:
        """Return the lanes at a barrier or a shuffle whose partners have all arrived."""
        here = self._at == place
        instruction = self.kernel.runs[place][0]
        if instruction.parts[0] == "bar":
            return here & here.all()
        members = self.read(instruction.operands[-1], TYPES["b32"]).reshape(-1, WARP)
        present = (here.reshape(-1, WARP) << np.arange(WARP)).sum(1, keepdims=True)
        return here & ((members & ~present) == 0).ravel()

    def _bound(self, place: int) -> list[tuple[Instruction, Step]]:
        if place not in self._steps:
            self._steps[place] = [(i, self._bind(i)) for i in self.kernel.runs[place]]
        return self._steps[place]

    def _bind(self, instruction: Instruction) -> Step:
        meaning = getattr(self, f"_{instruction.parts[0]}", self._computed)
        try:
            step = meaning(instruction.parts, *instruction.operands)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise self._error(instruction, f"not understood ({type(error).__name__}: {error})") from error
        if step is None:
            raise self._error(instruction, f"unknown opcode {'.'.join(instruction.parts)}")
        if instruction.guard is None:
            return step
        guard, negated = self.read(instruction.guard.lstrip("!"), TYPES["pred"]), instruction.guard.startswith("!")

        def guarded(active: np.ndarray) -> None:
            where = active & (guard ^ negated)
            if where.any():
                step(where)

        return guarded

    def _error(self, instruction: Instruction, what: str) -> PtxError:
        return PtxError(f"{self.kernel.name}, `{instruction.text}`: {what}")

    # ---- operands ----

    def array(self, name: str) -> np.ndarray:
        """Return the values of a register in all lanes."""
        if name not in self._arrays:
            self._arrays[name] = np.zeros(self.threads, self.kernel.registers[re.split(r"\d", name)[0]])
        return self._arrays[name]

    def read(self, operand: str, dtype: np.dtype) -> np.ndarray:
        """Return an operand as numbers of a type; for a wider register, the low part."""
        if operand.startswith("%"):
            array = self.array(operand)
            return array.view(dtype)[:: max(1, array.itemsize // dtype.itemsize)]
        if operand in self.kernel.shared:
            value = self.kernel.shared[operand]
        elif operand in self.kernel.parameters:
            value = self.kernel.parameters[operand][0]
        elif operand[:2] in ("0f", "0d"):  # its bits
            bits = np.array(int(operand[2:], 16), f"u{len(operand[2:]) // 2}")
            return np.full(self.threads, bits.view(dtype if dtype.itemsize == bits.itemsize else "f"), dtype)
        else:
            value = int(operand, 0)
        return np.full(self.threads, value % (1 << 64), np.uint64).astype(dtype)

    def write(self, operand: str, dtype: np.dtype) -> np.ndarray:
        """Return a register to write numbers of a type to; a wider register is sign-extended."""
        array = self.array(operand)
        if array.itemsize == dtype.itemsize:
            return array.view(dtype)
        assert array.itemsize > dtype.itemsize
        return array.view(f"{'i' if dtype.kind == 'i' else 'u'}{array.itemsize}")

    def assign(self, operand: str, dtype: np.dtype, compute: Callable[[], np.ndarray]) -> Step:
        out = self.write(operand, dtype)
        return lambda active: np.copyto(out, compute(), "unsafe", where=active)

    # ---- moving ----

    def _address(self, operand: str, space: str) -> Callable[[np.ndarray], np.ndarray]:
        base, offset = re.fullmatch(r"\[([%\w$@]+)(?:\+(-?\d+))?\]", operand).groups()  # type: ignore[union-attr]
        of_base = self.array(base) if base.startswith("%") else self.read(base, TYPES["u64"])
        shift = np.uint64((int(offset or 0) + SPACES[space]) % (1 << 64))
        return lambda active: of_base[active].astype(np.uint64) + shift

    def _access(self, parts: list[str], operand: str) -> tuple[list[str], np.dtype]:
        """Return the registers of a load or a store, and their type."""
        registers = operand.strip("{}").replace(",", " ").split()
        cached = [part for part in parts[2:-1] if part != "cs"]  # ignore the cache hint
        if cached != ([f"v{len(registers)}"] if len(registers) > 1 else []):
            raise KeyError(parts)
        return registers, TYPES[parts[-1]]

    def _ld(self, parts: list[str], to: str, place: str) -> Step:
        registers, dtype = self._access(parts, to)
        address, outs = self._address(place, parts[1]), [self.write(name, dtype) for name in registers]

        def step(active: np.ndarray) -> None:
            for out, value in zip(outs, self.memory.load(address(active), dtype, len(outs)), strict=True):
                out[active] = value

        return step

    def _st(self, parts: list[str], place: str, given: str) -> Step:
        registers, dtype = self._access(parts, given)
        address, values = self._address(place, parts[1]), [self.read(name, dtype) for name in registers]
        return lambda active: self.memory.store(address(active), [value[active] for value in values])

    def _atom(self, parts: list[str], to: str, place: str, last: str) -> Step | None:
        if parts[2:] != ["inc", "u32"]:
            return None
        address, limit, out = self._address(place, parts[1]), self.read(last, TYPES["u32"]), self.array(to)

        def step(active: np.ndarray) -> None:
            for lane in np.flatnonzero(active):
                at = address(self.lane == lane)
                out[lane] = before = self.memory.load(at, TYPES["u32"], 1)[0, 0]
                after = 0 if before >= limit[lane] else before + 1
                self.memory.store(at, [np.array([after], np.uint32)])

        return step

    def _mov(self, parts: list[str], to: str, given: str) -> Step | None:
        """Move a register, pack halves into a register, or unpack a register."""
        if "{" not in to + given:
            return self._computed(parts, to, given)
        dtype, names = TYPES[parts[-1]], re.findall(r"[^\s,{}]+", given if given.startswith("{") else to)
        narrow = np.dtype(f"u{dtype.itemsize // len(names)}")
        packed = self.array(to if given.startswith("{") else given).view(narrow).reshape(-1, len(names)).T
        registers = [self.array(name).view(narrow) for name in names]
        targets, sources = (packed, registers) if given.startswith("{") else (registers, packed)

        def step(active: np.ndarray) -> None:
            for target, source in zip(targets, np.array(sources), strict=True):  # copied: the two may overlap
                np.copyto(target, source, where=active)

        return step

    def _cvta(self, parts: list[str], to: str, given: str) -> Step | None:
        return self._computed(["mov", parts[-1]], to, given) if parts[1:3] == ["to", "global"] else None

    def _nothing(self, parts: list[str], *operands: str) -> Step:
        return lambda active: None

    _prefetch = _nothing

    def _membar(self, parts: list[str]) -> Step:
        def step(active: np.ndarray) -> None:
            self.kernel.fences += int(active.sum())

        return step

    # ---- branches and warp operations ----

    def _bra(self, parts: list[str], label: str) -> Step:
        place = self.kernel.labels[label]
        return lambda active: np.copyto(self._at, place, where=active)

    def _ret(self, parts: list[str]) -> Step:
        return lambda active: np.copyto(self._at, len(self.kernel.runs), where=active)

    def _bar(self, parts: list[str], *operands: str) -> Step | None:
        if parts[1:] == ["sync"]:
            return self._nothing(parts)
        if parts[1:] == ["red", "or", "pred"]:
            votes = self.read(operands[-1], TYPES["pred"])
            return self.assign(operands[0], TYPES["pred"], votes.any)
        return None

    def _shfl(self, parts: list[str], to: str, given: str, distance: str, bounds: str, members: str) -> Step | None:
        if parts[1:] != ["sync", "down", "b32"]:
            return None
        to, _, found = to.partition("|")
        value, out, is_found = self.read(given, TYPES["b32"]), self.array(to), self.array(found)
        by, bound = (self.read(operand, TYPES["u32"]) for operand in (distance, bounds))
        lane = self.lane % WARP

        def step(active: np.ndarray) -> None:
            segment, clamp, source = bound >> 8 & 31, bound & 31, lane + (by & 31)
            inside = source <= (lane & segment | clamp & ~segment)
            np.copyto(out, value[np.where(inside, source - lane + self.lane, self.lane)], where=active)
            np.copyto(is_found, inside, where=active)

        return step

    # ---- arithmetic ----

    def _computed(self, parts: list[str], to: str, *given: str) -> Step | None:
        function = COMPUTED.get(".".join(part for part in parts[:-1] if part != "rn"))
        return function and self._apply(function, to, parts[-1], *given)

    def _apply(self, function: Callable[..., np.ndarray], to: str, kind: str, *given: str) -> Step:
        dtype = TYPES[kind]
        values = [self.read(operand, dtype) for operand in given]
        return self.assign(to, dtype, lambda: function(*values))

    def _mul(self, parts: list[str], to: str, a: str, b: str) -> Step | None:
        if parts[1:] != ["wide", "s32"]:
            return self._computed(parts, to, a, b)
        x, y = (self.read(operand, TYPES["s32"]) for operand in (a, b))
        return self.assign(to, TYPES["s64"], lambda: np.multiply(x, y, dtype=np.int64))

    def _fma(self, parts: list[str], to: str, *given: str) -> Step | None:
        if parts[1:] not in (["rn", "f32"], ["rn", "f64"]):
            return None
        return self._apply(fma if self.fused else COMPUTED["mad.lo"], to, parts[-1], *given)

    def _shift(self, parts: list[str], to: str, a: str, b: str) -> Step:
        """Shift; an amount beyond the width leaves the sign bits, or zero."""
        dtype, by = TYPES[parts[1]], self.read(b, TYPES["u32"])
        value, most = self.read(a, dtype), 8 * dtype.itemsize - 1
        shift, signed = (np.left_shift, False) if parts[0] == "shl" else (np.right_shift, dtype.kind == "i")

        def compute() -> np.ndarray:
            shifted = shift(value, np.minimum(by, most).astype(dtype))
            return shifted if signed else np.where(by > most, 0, shifted)

        return self.assign(to, dtype, compute)

    _shl = _shr = _shift

    def _bfi(self, parts: list[str], to: str, a: str, b: str, c: str, d: str) -> Step | None:
        """Insert ``d`` bits of ``a`` at bit ``c`` of ``b``."""
        if parts[1:] != ["b32"]:
            return None
        bits, base, at, length = (self.read(operand, TYPES["b32"]) for operand in (a, b, c, d))

        def compute() -> np.ndarray:
            mask = ((np.uint64(1) << length) - 1) << at
            return (base & ~mask) | (bits.astype(np.uint64) << at & mask)

        return self.assign(to, TYPES["b32"], compute)

    # ---- choosing and converting ----

    def _setp(self, parts: list[str], to: str, a: str, b: str) -> Step:
        _, comparison, kind = parts
        x, y, compare = self.read(a, TYPES[kind]), self.read(b, TYPES[kind]), COMPARISONS[comparison]
        return self.assign(to, TYPES["pred"], lambda: compare(x, y))

    def _selp(self, parts: list[str], to: str, a: str, b: str, c: str) -> Step:
        which = self.read(c, TYPES["pred"])
        return self._apply(lambda x, y: np.where(which, x, y), to, parts[1], a, b)

    def _cvt(self, parts: list[str], to: str, given: str) -> Step | None:
        *mode, target, source = parts[1:]
        if mode not in ([], ["rn"]) or ("f" in source and "f" not in target):
            return None
        value = self.read(given, TYPES[source])

        def compute() -> np.ndarray:
            wide = (value.astype(np.uint32) << np.uint32(16)).view(np.float32) if source == "bf16" else value
            return _to_bfloat(wide) if target == "bf16" else wide.astype(TYPES[target])

        return self.assign(to, TYPES[target], compute)


def _to_bfloat(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a b + c, computed in twice the precision first: nearly always the correctly rounded result."""
    if a.dtype == np.float32:  # the product is exact in float64
        return (a.astype(np.float64) * b + c).astype(np.float32)

    def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = x * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product, (ah, al), (bh, bl) = a * b, halves(a), halves(b)
    left = ((ah * bh - product) + ah * bl + al * bh) + al * bl  # the product's rounding error, by Dekker
    total = product + c
    part = total - product
    exact = total + ((product - (total - part)) + (c - part) + left)
    return np.where(np.isfinite(exact), exact, a * b + c)

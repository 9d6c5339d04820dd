"""An interpreter of PTX, the code that nvcc hands to the GPU's assembler; as much of it as the kernels use.

A launch runs its blocks one after another. The threads of a block are lanes of numpy arrays, one array per register;
they run together as long as they are at the same place, and apart where they branch: of those that can go on, the
lanes that are furthest behind in the text run first. At a barrier or a shuffle lanes wait for the others.

Arithmetic is that of the type, rounded once per instruction. The instructions that PTX calls approximate are rounded
correctly here: one of the answers that a GPU may give. What has no meaning here, and every access outside the known
memory, is an error that names the kernel, the line and the instruction.
"""

from __future__ import annotations

import bisect
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

WARP = 32
SHARED, PARAMETERS = 1 << 60, 1 << 61  # where these spaces lie among all addresses
SPACES = {"global": 0, "const": 0, "shared": SHARED, "param": PARAMETERS}
TYPES = {f"{kind}{8 * n}": np.dtype(f"{code}{n}") for kind, code in ("uu", "si", "bu") for n in (1, 2, 4, 8)}
TYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}
TYPES |= {"bf16": np.dtype("u2")}  # numpy has none: its bits

# What may stand between an access and its type without a meaning here: caches, and an order among threads that
# run one instruction at a time anyway.
HINTS = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "relaxed", "acquire", "release", "weak"}
HINTS |= {"gpu", "cta", "sys", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B", "L2::evict_first"}
HINTS |= {f"L1::{hint}" for hint in ("evict_first", "evict_last", "evict_normal", "no_allocate")}

BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs}
COMPARISONS = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
COMPARISONS |= {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}  # of unsigned numbers
APPROXIMATE = {
    "rcp": lambda a: 1 / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
}
ATOMICS: dict[str, Callable[..., int]] = {
    "inc": lambda old, last: 0 if old >= last else old + 1,
    "add": operator.add,
    "exch": lambda old, new: new,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "cas": lambda old, expected, new: new if old == expected else old,
}

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?([^{;]*)\{", re.DOTALL)
_VARIABLE = re.compile(r"\.(shared|param)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
_STATEMENT = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<label>[\w$]+):(?!:)|(?P<text>[^\s;{}][^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)"
)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class PtxError(RuntimeError):
    """The program does what a GPU would not survive, or something that is not understood."""


@dataclass
class Instruction:
    line: int
    text: str
    guard: str | None  # the predicate, with its "!"
    opcode: str
    operands: list[str]

    @cached_property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def collective(self) -> bool:
        """Whether lanes wait for others."""
        return self.parts[0] in ("shfl", "vote", "bar", "barrier")

    @property
    def of_block(self) -> bool:
        return self.parts[0] in ("bar", "barrier") and self.parts[1] != "warp"


@dataclass
class Straight:
    """Instructions that follow each other. A collective one stands alone; a branch ends them."""

    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Kernel:
    """One entry of a program."""

    name: str
    parameters: dict[str, tuple[int, int]]  # offset and size
    body: str
    first_line: int
    dynamic_shared: str | None
    reached: set[int] = field(default_factory=set)  # those of `places` that some lane came to

    @cached_property
    def _parsed(self) -> tuple[dict[str, str], dict[str, int], int, list[Straight], dict[str, int]]:
        """Registers and their types, shared arrays and where they lie, their size; the code, and its labels."""
        newlines = [match.start() for match in re.finditer("\n", self.body)]
        registers: dict[str, str] = {}
        shared: dict[str, int] = {}
        size = 0
        scopes: list[dict[str, str]] = [{}]
        places, labels = [Straight()], {}
        for match in _STATEMENT.finditer(self.body):
            line = self.first_line + bisect.bisect(newlines, match.start(match.lastgroup or 0))
            text = " ".join((match["text"] or "").split())
            if match["open"]:
                scopes.append({})
            elif match["close"]:
                scopes.pop()
            elif match["label"]:
                if places[-1].instructions:
                    places.append(Straight())
                labels[match["label"]] = len(places) - 1
            elif text.startswith(".reg"):
                _, kind, names = text.split(maxsplit=2)
                for name in re.split(r",\s*", names):
                    stem, _, count = name.rstrip(">").partition("<")
                    for each in [f"{stem}{i}" for i in range(int(count))] if count else [stem]:
                        scopes[-1][each] = each if len(scopes) == 1 else f"{each}@{line}"
                        registers[scopes[-1][each]] = kind[1:]
            elif variable := _VARIABLE.match(text):
                _, align, kind, name, count = variable.groups()
                width = TYPES[kind].itemsize
                size = _up(size, int(align or width))
                shared[name], size = size, size + width * int(count or 1)
            elif text.startswith(".pragma"):
                continue
            else:
                if inner := {k: v for scope in scopes[1:] for k, v in scope.items()}:
                    text = re.sub(r"%[\w$]+", lambda m, inner=inner: inner.get(m[0], m[0]), text)
                guard, rest = re.match(r"(?:@(\S+)\s+)?(.*)", text).groups()  # type: ignore[union-attr]
                opcode, _, operands = rest.partition(" ")
                instruction = Instruction(line, text, guard, opcode, _OPERAND.findall(operands))
                if places[-1].instructions and instruction.collective:
                    places.append(Straight())
                places[-1].instructions.append(instruction)
                if instruction.collective or instruction.parts[0] in ("bra", "ret", "exit"):
                    places.append(Straight())
        if self.dynamic_shared is not None:
            size = _up(size, 16)
            shared[self.dynamic_shared] = size
        return registers, shared, size, places, labels

    registers = property(lambda self: self._parsed[0])
    shared = property(lambda self: self._parsed[1])
    shared_size = property(lambda self: self._parsed[2])  # without what is dynamic
    places = property(lambda self: self._parsed[3])
    labels = property(lambda self: self._parsed[4])

    @cached_property
    def _blocks(self) -> dict[tuple[int, bool], Block]:
        return {}

    def launch(
        self, blocks: int, threads: int, shared_bytes: int, arguments: bytes, memory: Memory, *, fused: bool = True
    ) -> None:
        """Run the kernel.

        Args:
            blocks: in the grid.
            threads: per block.
            shared_bytes: of dynamic shared memory.
            arguments: the parameters, laid out as :attr:`parameters` says.
            memory: what it may touch.
            fused: whether a fused multiply-add is rounded once, as it should be, or after the product as well.

        Raises:
            PtxError: something is not as it should be; the message names the kernel, the line and the instruction.
        """
        if threads % WARP:
            raise PtxError(f"{self.name}: expected whole warps of {WARP} threads, got {threads} threads")
        if (threads, fused) not in self._blocks:
            self._blocks[threads, fused] = Block(self, threads, fused)
        block = self._blocks[threads, fused]
        garbage = np.full(self.shared_size + shared_bytes, 0xFF, np.uint8)
        spaces = {SHARED: garbage, PARAMETERS: np.frombuffer(arguments, np.uint8)}
        for index in range(blocks):
            garbage.fill(0xFF)
            with np.errstate(all="ignore"):
                block.run(index, blocks, memory.with_spaces(spaces))


def parse(text: str) -> dict[str, Kernel]:
    """The kernels of a program, by their mangled names."""
    text = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)
    dynamic = re.search(r"\.extern\s+\.shared[^;]*?([\w$]+)\[\];", text)
    kernels = {}
    for entry in _ENTRY.finditer(text):
        name, declared, _ = entry.groups()
        parameters, offset = {}, 0
        for _, align, kind, parameter, count in _VARIABLE.findall(declared or ""):
            width = TYPES[kind].itemsize
            offset, size = _up(offset, int(align or width)), width * int(count or 1)
            parameters[parameter] = offset, size
            offset += size
        end, depth = entry.end(), 1
        while depth:
            brace = re.compile(r"[{}]").search(text, end)
            assert brace is not None, f"{name} has no end"
            end, depth = brace.end(), depth + (1 if brace[0] == "{" else -1)
        first_line = 1 + text.count("\n", 0, entry.end())
        kernels[name] = Kernel(name, parameters, text[entry.end() : end - 1], first_line, dynamic and dynamic[1])
    return kernels


def _up(offset: int, align: int) -> int:
    return -(-offset // align) * align


class Memory:
    """Pieces of memory by their address.

    Args:
        pieces: address and bytes, an array of uint8, of each.
    """

    def __init__(self, pieces: Iterable[tuple[int, np.ndarray]]) -> None:
        ordered = sorted(((at, bytes_) for at, bytes_ in pieces if len(bytes_)), key=lambda piece: piece[0])
        self._starts = [at for at, _ in ordered]
        self._bytes = [bytes_ for _, bytes_ in ordered]
        self._words: dict[tuple[int, np.dtype], np.ndarray] = {}

    def with_spaces(self, spaces: dict[int, np.ndarray]) -> Memory:
        return Memory([*zip(self._starts, self._bytes, strict=True), *spaces.items()])

    def _places(self, addresses: np.ndarray, size: int) -> Iterable[tuple[np.ndarray | slice, int]]:
        """Which of the addresses, of `size` bytes each, lie in which piece."""
        low, high = int(addresses.min()), int(addresses.max())
        piece = bisect.bisect(self._starts, low) - 1
        if piece >= 0 and high + size <= self._starts[piece] + len(self._bytes[piece]):
            yield slice(None), piece
            return
        pieces = np.array([bisect.bisect(self._starts, int(address)) - 1 for address in addresses])
        for address, piece in zip(addresses.tolist(), pieces.tolist(), strict=True):
            if piece < 0 or address + size > self._starts[piece] + len(self._bytes[piece]):
                raise IndexError(f"{size} bytes at {address:#x} are outside of every buffer")
        for piece in np.unique(pieces).tolist():
            yield pieces == piece, piece

    def _access(self, addresses: np.ndarray, dtype: np.dtype, count: int) -> Iterable[tuple]:
        size = dtype.itemsize * count
        if (addresses % size).any():
            raise IndexError(f"{size} bytes at {int(addresses[addresses % size > 0][0]):#x}, which is misaligned")
        for which, piece in self._places(addresses, size):
            start, words = self._starts[piece], self._words.get((piece, dtype))
            if words is None:
                bytes_ = self._bytes[piece]
                words = bytes_[: len(bytes_) // dtype.itemsize * dtype.itemsize].view(dtype)
                self._words[piece, dtype] = words
            yield which, words, (addresses[which] - np.uint64(start)).astype(np.int64) // dtype.itemsize

    def load(self, addresses: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
        """Of shape (count, len(addresses))."""
        values = np.empty((count, len(addresses)), dtype)
        for which, words, at in self._access(addresses, dtype, count):
            for k in range(count):
                values[k, which] = words[at + k]
        return values

    def store(self, addresses: np.ndarray, values: list[np.ndarray]) -> None:
        for which, words, at in self._access(addresses, values[0].dtype, len(values)):
            for k, value in enumerate(values):
                words[at + k] = value[which]


Active = np.ndarray | bool  # which lanes an instruction is for; True for all
Step = Callable[[Active], None]


class Block:
    """The threads of a block, one after another block of a launch."""

    def __init__(self, kernel: Kernel, threads: int, fused: bool) -> None:
        self.kernel, self.threads, self.fused = kernel, threads, fused
        self._arrays: dict[str, np.ndarray] = {}
        self._steps: dict[int, list[tuple[Instruction, Step]]] = {}
        lanes = np.arange(threads, dtype=np.uint32)
        self._special = {name: np.zeros(threads, np.uint32) for name in ("%ctaid.x", "%nctaid.x")}
        self._special |= {"%tid.x": lanes, "%laneid": lanes % WARP, "%warpid": lanes // WARP}
        self._special |= {"%ntid.x": np.full(threads, threads, np.uint32)}
        for d in "yz":
            self._special |= {f"%{name}.{d}": np.zeros(threads, np.uint32) for name in ("tid", "ctaid")}
            self._special |= {f"%{name}.{d}": np.ones(threads, np.uint32) for name in ("ntid", "nctaid")}
        self._waits = np.array([any(i.collective for i in place.instructions) for place in kernel.places] + [True])

    # ---- the order of things ----

    def run(self, index: int, blocks: int, memory: Memory) -> None:
        self.memory = memory
        self._special["%ctaid.x"].fill(index)
        self._special["%nctaid.x"].fill(blocks)
        self._at = np.zeros(self.threads, np.int64)  # the place of each lane
        end = len(self.kernel.places)
        while (place := self._next()) < end:
            here = self._at == place
            if self._waits[place]:
                here = self._complete(place)
            active: Active = True if here.all() else here
            self._at[here] = place + 1
            self.kernel.reached.add(place)
            for instruction, step in self._bound(place):
                try:
                    step(active)
                except IndexError as error:
                    raise self._error(instruction, str(error)) from error

    def _next(self) -> int:
        """The first place with lanes that need not wait; where there is none, the first whose lanes are complete."""
        first = int(self._at.min())
        if not self._waits[first]:
            return first
        free = self._at[~self._waits[self._at]]
        if free.size:
            return int(free.min())
        waiting = [place for place in np.unique(self._at).tolist() if place < len(self.kernel.places)]
        for place in waiting:
            if self._complete(place).any():
                return place
        if waiting:
            first_instruction = self.kernel.places[waiting[0]].instructions[0]
            others = [f"line {self.kernel.places[place].instructions[0].line}" for place in waiting[1:]]
            lanes = np.flatnonzero(self._at == waiting[0])
            raise self._error(
                first_instruction,
                f"{len(lanes)} of {self.threads} threads wait, the others {' and '.join(others) or 'have returned'}",
            )
        return len(self.kernel.places)

    def _complete(self, place: int) -> np.ndarray:
        """The lanes at a collective instruction that need not wait for more to come."""
        here = self._at == place
        instruction = self.kernel.places[place].instructions[0]
        if instruction.of_block:
            return here & here.all()
        members = self.read(instruction.operands[-1], TYPES["b32"]).reshape(-1, WARP)
        present = (here.reshape(-1, WARP) << np.arange(WARP)).sum(1, keepdims=True)
        return here & ((members & ~present) == 0).ravel()

    def _bound(self, place: int) -> list[tuple[Instruction, Step]]:
        if place not in self._steps:
            self._steps[place] = [(i, self._bind(i)) for i in self.kernel.places[place].instructions]
        return self._steps[place]

    def _bind(self, instruction: Instruction) -> Step:
        """What the instruction does to the lanes that are active."""
        meaning = getattr(self, f"_{instruction.parts[0]}", None)
        if instruction.parts[0] in BITWISE or instruction.parts[0] in ("add", "sub", "neg", "abs"):
            meaning = self._plain
        step = None
        try:
            step = meaning and meaning(instruction, *instruction.operands)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise self._error(instruction, f"not understood ({type(error).__name__}: {error})") from error
        if step is None:
            raise self._error(instruction, f"unknown opcode {instruction.opcode}")
        if instruction.guard is None:
            return step
        guard = self.predicate(instruction.guard)

        def guarded(active: Active) -> None:
            where = guard() & active
            if where.any():
                step(where)

        return guarded

    def _error(self, instruction: Instruction, what: str) -> PtxError:
        return PtxError(f"{self.kernel.name}, line {instruction.line}, `{instruction.text}`: {what}")

    # ---- operands ----

    def array(self, name: str) -> np.ndarray:
        """A register: what all lanes have in it."""
        if name in self._special:
            return self._special[name]
        if name not in self._arrays:
            dtype = TYPES[self.kernel.registers[name]]
            self._arrays[name] = np.zeros(self.threads, dtype)
        return self._arrays[name]

    def read(self, operand: str, dtype: np.dtype) -> np.ndarray:
        """An operand as numbers of a type. Where a register is wider, its low part."""
        if operand.startswith("%"):
            array = self.array(operand)
            if "b" in (dtype.kind, array.dtype.kind):
                assert dtype == array.dtype
                return array
            return array.view(dtype)[:: max(1, array.itemsize // dtype.itemsize)]
        return np.full(self.threads, self._constant(operand, dtype), dtype)

    def _constant(self, operand: str, dtype: np.dtype) -> np.generic:
        if operand in self.kernel.shared:
            return dtype.type(self.kernel.shared[operand])
        if operand in self.kernel.parameters:
            return dtype.type(self.kernel.parameters[operand][0])
        if operand[:2].lower() in ("0f", "0d"):
            bits = np.array(int(operand[2:], 16), f"u{4 if operand[1].lower() == 'f' else 8}")
            return bits.view(dtype)[()] if dtype.itemsize == bits.itemsize else bits.view("f")[()]
        if dtype.kind == "f":
            return dtype.type(float(operand))
        value = int(operand.rstrip("U"), 0)
        return dtype.type(value != 0) if dtype.kind == "b" else np.array(value % (1 << 64), "u8").astype(dtype)[()]

    def write(self, operand: str, dtype: np.dtype) -> np.ndarray:
        """A register, to be written numbers of a type; one that is wider is extended by their sign."""
        array = self.array(operand)
        if array.itemsize == dtype.itemsize or dtype.kind == "b":
            return array.view(dtype)
        assert array.itemsize > dtype.itemsize
        return array.view(f"{'i' if dtype.kind == 'i' else 'u'}{array.itemsize}")

    def predicate(self, operand: str) -> Callable[[], np.ndarray]:
        values = self.read(operand.lstrip("!"), TYPES["pred"])
        return (lambda: ~values) if operand.startswith("!") else (lambda: values)

    def assign(self, operand: str, dtype: np.dtype, compute: Callable[[], np.ndarray]) -> Step:
        if operand == "_":
            return lambda active: None
        out = self.write(operand, dtype)
        return lambda active: np.copyto(out, compute(), "unsafe", where=active)

    def _address(self, operand: str, space: str | None) -> Callable[[Active], np.ndarray]:
        base, sign, offset = re.fullmatch(r"\[\s*([%\w$@.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", operand).groups()
        if base.startswith("%"):
            registers = self.array(base)
            registers = registers.view(f"u{registers.itemsize}")
        else:
            registers = self.read(base, TYPES["u64"])
        distance = int(offset or "0", 0) * (-1 if sign == "-" else 1) + SPACES[space or "global"]
        shift = np.uint64(distance % (1 << 64))
        return lambda active: (registers if active is True else registers[active]).astype(np.uint64) + shift

    # ---- moving ----

    def _access(self, parts: list[str]) -> tuple[str | None, int, np.dtype]:
        space, count, kind = None, 1, TYPES[parts[-1]]
        for part in parts[1:-1]:
            if part in SPACES:
                space = part
            elif part in ("v2", "v4", "v8"):
                count = int(part[1])
            elif part not in HINTS:
                raise KeyError(part)
        return space, count, kind

    def _ld(self, instruction: Instruction, to: str, place: str, *policy: str) -> Step:
        space, count, dtype = self._access(instruction.parts)
        address = self._address(place, space)
        outs = [None if name == "_" else self.write(name, dtype) for name in _elements(to)]
        if len(outs) != count:
            raise ValueError(to)

        def step(active: Active) -> None:
            values = self.memory.load(address(active), dtype, count)
            for out, value in zip(outs, values, strict=True):
                if out is not None:
                    out[slice(None) if active is True else active] = value

        return step

    def _st(self, instruction: Instruction, place: str, given: str, *policy: str) -> Step:
        space, count, dtype = self._access(instruction.parts)
        address = self._address(place, space)
        values = [self.read(name, dtype) for name in _elements(given)]
        if len(values) != count:
            raise ValueError(given)
        return lambda active: self.memory.store(
            address(active), values if active is True else [value[active] for value in values]
        )

    def _atom(self, instruction: Instruction, to: str, place: str, *given: str) -> Step:
        (name,) = (part for part in instruction.parts if part in ATOMICS)
        space, _, dtype = self._access([part for part in instruction.parts if part != name])
        address, values = self._address(place, space), [self.read(value, dtype) for value in given]
        out = self.write(to, dtype)

        def step(active: Active) -> None:
            for lane in np.flatnonzero(np.broadcast_to(active, self.threads)):
                only = np.arange(self.threads) == lane
                at = address(only)
                out[lane] = before = self.memory.load(at, dtype, 1)[0, 0]
                after = ATOMICS[name](int(before), *(int(value[lane]) for value in values))
                self.memory.store(at, [np.array([after]).astype(dtype)])

        return step

    def _mov(self, instruction: Instruction, to: str, given: str) -> Step:
        dtype = TYPES[instruction.parts[-1]]
        if given.startswith("{"):
            return self._pack(self.write(to, dtype), _elements(given))
        if to.startswith("{"):
            names = _elements(to)
            narrow = np.dtype(f"u{dtype.itemsize // len(names)}")
            values = self.read(given, dtype).view(narrow).reshape(-1, len(names))
            steps = [self.assign(name, narrow, lambda k=k: values[:, k]) for k, name in enumerate(names) if name != "_"]
            return lambda active: [step(active) for step in steps] and None
        value = self.read(given, dtype)
        return self.assign(to, dtype, lambda: value)

    def _pack(self, out: np.ndarray, names: list[str]) -> Step:
        narrow = np.dtype(f"u{out.itemsize // len(names)}")
        fields, values = out.view(narrow).reshape(-1, len(names)), [self.read(name, narrow) for name in names]

        def step(active: Active) -> None:
            for k, value in enumerate(np.array(values)):  # a copy: a register may be packed with itself
                np.copyto(fields[:, k], value, where=active)

        return step

    def _cvta(self, instruction: Instruction, to: str, given: str) -> Step:
        *way, space, dtype = instruction.parts[1:]
        base = np.uint64(SPACES[space] if not way else -SPACES[space] % (1 << 64))
        value = self.read(given, TYPES[dtype])
        return self.assign(to, TYPES[dtype], lambda: value + base)

    def _createpolicy(self, instruction: Instruction, to: str, *given: str) -> Step:
        return self.assign(to, TYPES["b64"], lambda: np.zeros(self.threads, np.uint64))

    def _nothing(self, instruction: Instruction, *operands: str) -> Step:
        return lambda active: None

    _membar = _fence = _prefetch = _nothing

    # ---- branches, and what lanes do together ----

    def _bra(self, instruction: Instruction, label: str) -> Step:
        place = self.kernel.labels[label]
        return lambda active: np.copyto(self._at, place, where=active)

    def _ret(self, instruction: Instruction) -> Step:
        return lambda active: np.copyto(self._at, len(self.kernel.places), where=active)

    _exit = _ret

    def _bar(self, instruction: Instruction, *operands: str) -> Step | None:
        parts = [part for part in instruction.parts[1:] if part not in ("cta", "aligned")]
        if parts in (["sync"], ["warp", "sync"]):
            return lambda active: None
        if parts in (["red", "or", "pred"], ["red", "and", "pred"]):
            vote = self.predicate(operands[-1])
            what = np.any if parts[1] == "or" else np.all
            return self.assign(operands[0], TYPES["pred"], lambda: np.full(self.threads, what(vote())))
        return None

    _barrier = _bar

    def _vote(self, instruction: Instruction, to: str, given: str, members: str) -> Step:
        what, vote = instruction.parts[2], self.predicate(given)
        member = self.read(members, TYPES["b32"]) >> self._special["%laneid"] & 1 == 1

        def compute() -> np.ndarray:
            votes, there = vote().reshape(-1, WARP), member.reshape(-1, WARP)
            if what == "ballot":
                result = ((votes & there) << np.arange(WARP, dtype=np.uint64)).sum(1)
            else:
                result = {"any": (votes & there).any(1), "all": (votes | ~there).all(1)}[what]
            return result.repeat(WARP)

        return self.assign(to, TYPES[instruction.parts[-1]], compute)

    def _shfl(self, instruction: Instruction, to: str, given: str, distance: str, bounds: str, members: str) -> Step:
        way, dtype = instruction.parts[2], TYPES[instruction.parts[-1]]
        to, _, found = to.partition("|")
        value = self.read(given, dtype)
        b, c = (self.read(operand, TYPES["s32"]) for operand in (distance, bounds))
        lane = self._special["%laneid"].astype(np.int32)
        first = np.arange(self.threads) // WARP * WARP
        outs = self.write(to, dtype), self.write(found, TYPES["pred"]) if found else None

        def step(active: Active) -> None:
            segment, clamp, by = c >> 8 & 31, c & 31, b & 31
            least, most = lane & segment, lane & segment | clamp & ~segment
            source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": least | by & ~segment}[way]
            inside = source >= most if way == "up" else source <= most
            np.copyto(outs[0], value[first + np.where(inside, source, lane)], where=active)
            if outs[1] is not None:
                np.copyto(outs[1], inside, where=active)

        return step

    # ---- arithmetic ----

    def _plain(self, instruction: Instruction, to: str, *given: str) -> Step | None:
        head, *modifiers, kind = instruction.parts
        if modifiers not in ([], ["rn"]):
            return None
        return self._apply((BITWISE | ARITHMETIC)[head], to, TYPES[kind], given)

    def _apply(self, function: Callable, to: str, dtype: np.dtype, given: Iterable[str]) -> Step:
        values = [self.read(operand, dtype) for operand in given]
        if isinstance(function, np.ufunc) and (out := self.write(to, dtype)).dtype == dtype:
            return lambda active: function(*values, out=out, where=active) is None
        return self.assign(to, dtype, lambda: function(*values))

    def _mul(self, instruction: Instruction, to: str, a: str, b: str) -> Step | None:
        return self._mad(instruction, to, a, b, "")

    def _mad(self, instruction: Instruction, to: str, a: str, b: str, c: str) -> Step | None:
        *mode, kind = instruction.parts[1:]
        dtype = TYPES[kind]
        if dtype.kind == "f":
            if mode not in ([], ["rn"]):
                return None
            return self._apply(np.multiply, to, dtype, (a, b)) if not c else self._fma(instruction, to, a, b, c)
        if mode not in (["lo"], ["wide"], ["hi"]) or (mode != ["lo"] and dtype.itemsize == 8):
            return None
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if mode != ["lo"] else dtype
        out = wide if mode == ["wide"] else dtype
        x, y = self.read(a, dtype), self.read(b, dtype)
        z = self.read(c or "0", out)

        def compute() -> np.ndarray:
            product = x.astype(wide) * y.astype(wide)
            return (product >> 8 * dtype.itemsize if mode == ["hi"] else product).astype(out) + z

        return self.assign(to, out, compute)

    def _fma(self, instruction: Instruction, to: str, *given: str) -> Step | None:
        dtype = TYPES[instruction.parts[-1]]
        if instruction.parts[1:-1] != ["rn"] or dtype not in (TYPES["f32"], TYPES["f64"]):
            return None
        if not self.fused:
            return self._apply(lambda a, b, c: a * b + c, to, dtype, given)
        return self._apply(fma32 if dtype.itemsize == 4 else fma64, to, dtype, given)

    def _div(self, instruction: Instruction, to: str, a: str, b: str) -> Step | None:
        *mode, kind = instruction.parts[1:]
        dtype = TYPES[kind]
        if dtype.kind != "f":
            return self._apply(_quotient, to, dtype, (a, b)) if not mode else None
        return self._apply(np.divide, to, dtype, (a, b)) if mode in (["rn"], ["approx"], ["full"]) else None

    def _rem(self, instruction: Instruction, to: str, a: str, b: str) -> Step:
        return self._apply(np.fmod, to, TYPES[instruction.parts[1]], (a, b))

    def _one_argument(self, instruction: Instruction, to: str, a: str) -> Step | None:
        head, *mode, kind = instruction.parts
        if mode not in (["rn"], ["approx"]):
            return None
        return self._apply(APPROXIMATE[head], to, TYPES[kind], (a,))

    _rcp = _sqrt = _rsqrt = _ex2 = _lg2 = _one_argument

    def _extreme(self, instruction: Instruction, to: str, a: str, b: str) -> Step:
        head, kind = instruction.parts
        functions = {"min": (np.minimum, np.fmin), "max": (np.maximum, np.fmax)}[head]
        return self._apply(functions[TYPES[kind].kind == "f"], to, TYPES[kind], (a, b))

    _min = _max = _extreme

    def _shift(self, instruction: Instruction, to: str, a: str, b: str) -> Step:
        head, kind = instruction.parts
        dtype = TYPES[kind]
        bits, shift = 8 * dtype.itemsize, np.left_shift if head == "shl" else np.right_shift
        value, by = self.read(a, dtype), self.read(b, TYPES["u32"])
        if dtype.kind == "i" and head == "shr":  # what is shifted out leaves the sign
            return self.assign(to, dtype, lambda: shift(value, np.minimum(by, bits - 1).astype(dtype)))
        return self.assign(to, dtype, lambda: np.where(by < bits, shift(value, (by % bits).astype(dtype)), 0))

    _shl = _shr = _shift

    def _shf(self, instruction: Instruction, to: str, a: str, b: str, c: str) -> Step | None:
        _, way, mode, _ = instruction.parts
        low, high, by = (self.read(operand, TYPES["u32"]) for operand in (a, b, c))

        def compute() -> np.ndarray:
            both = high.astype(np.uint64) << np.uint64(32) | low
            n = (by % 32 if mode == "wrap" else np.minimum(by, 32)).astype(np.uint64)
            return both >> n if way == "r" else (both << n) >> np.uint64(32)

        return self.assign(to, TYPES["b32"], compute)

    def _bfe(self, instruction: Instruction, to: str, a: str, b: str, c: str) -> Step | None:
        dtype = TYPES[instruction.parts[1]]
        value, at, length = self.read(a, dtype), self.read(b, TYPES["u8"]), self.read(c, TYPES["u8"])
        if dtype.itemsize != 4:
            return None

        def compute() -> np.ndarray:
            wide = value.astype(np.int64) >> np.minimum(at, 63).astype(np.int64)
            unused = 64 - np.minimum(length, 32).astype(np.int64)
            if dtype.kind == "u":
                return wide & (2 ** (64 - unused) - 1)
            return np.where(length == 0, 0, wide << np.minimum(unused, 63) >> np.minimum(unused, 63))

        return self.assign(to, dtype, compute)

    def _bfi(self, instruction: Instruction, to: str, a: str, b: str, c: str, d: str) -> Step:
        dtype = TYPES[instruction.parts[1]]
        source, base = self.read(a, dtype), self.read(b, dtype)
        at, length = (self.read(operand, TYPES["u8"]).astype(object) for operand in (c, d))

        def compute() -> np.ndarray:
            mask = ((1 << length) - 1) << at  # Python's integers: nothing overflows
            result = base.astype(object) & ~mask | source.astype(object) << at & mask
            return (result & ((1 << 8 * dtype.itemsize) - 1)).astype(dtype)

        return self.assign(to, dtype, compute)

    def _prmt(self, instruction: Instruction, to: str, a: str, b: str, c: str) -> Step | None:
        if instruction.parts[1:] != ["b32"]:
            return None
        low, high, selector = (self.read(operand, TYPES["u32"]) for operand in (a, b, c))
        nibbles = np.arange(0, 16, 4, dtype=np.uint32)

        def compute() -> np.ndarray:
            bytes_ = np.stack([low, high], 1).view(np.uint8)
            select = selector[:, None] >> nibbles & 15
            chosen = np.take_along_axis(bytes_, (select & 7).astype(np.int64), 1)
            signs = np.where(chosen & 128, 255, 0).astype(np.uint8)
            return np.ascontiguousarray(np.where(select & 8, signs, chosen)).view(np.uint32)[:, 0]

        return self.assign(to, TYPES["b32"], compute)

    def _lop3(self, instruction: Instruction, to: str, a: str, b: str, c: str, table: str) -> Step:
        values, rows = [self.read(operand, TYPES["b32"]) for operand in (a, b, c)], int(table, 0)

        def compute() -> np.ndarray:
            result = np.zeros(self.threads, np.uint32)
            for row in (row for row in range(8) if rows >> row & 1):
                x, y, z = (v if row >> k & 1 else ~v for v, k in zip(values, (2, 1, 0), strict=True))
                result |= x & y & z
            return result

        return self.assign(to, TYPES["b32"], compute)

    def _popc(self, instruction: Instruction, to: str, a: str) -> Step:
        value = self.read(a, TYPES[instruction.parts[1]])
        bytes_ = value.view(np.uint8).reshape(self.threads, -1)
        return self.assign(to, TYPES["u32"], lambda: np.unpackbits(bytes_, axis=1).sum(1))

    def _clz(self, instruction: Instruction, to: str, a: str) -> Step:
        value = self.read(a, TYPES[instruction.parts[1]])
        bits = 8 * value.itemsize
        return self.assign(to, TYPES["u32"], lambda: np.array([bits - int(v).bit_length() for v in value]))

    # ---- choosing and converting ----

    def _setp(self, instruction: Instruction, to: str, a: str, b: str, *more: str) -> Step:
        comparison, *combine, kind = instruction.parts[1:]
        x, y = self.read(a, TYPES[kind]), self.read(b, TYPES[kind])
        if comparison in COMPARISONS:
            name = COMPARISONS[comparison]
            compare = getattr(operator, name)
            # NaN is not even unequal to anything; the comparisons with a "u" hold for it
            test = (lambda: (x != y) & (x == x) & (y == y)) if name == "ne" else (lambda: compare(x, y))
        elif comparison in ("num", "nan"):
            test = (lambda: (x == x) & (y == y)) if comparison == "num" else (lambda: (x != x) | (y != y))
        else:
            unordered = getattr(operator, COMPARISONS[comparison.removesuffix("u")])
            test = lambda: unordered(x, y) | (x != x) | (y != y)  # noqa: E731
        if combine:
            with_ = self.predicate(more[0])
            first, second = (
                (lambda: BITWISE[combine[0]](test(), with_())),
                (lambda: BITWISE[combine[0]](~test(), with_())),
            )
        else:
            first, second = test, lambda: ~test()
        to, _, other = to.partition("|")
        if not other:
            return self.assign(to, TYPES["pred"], first)
        out, inverse = self.write(to, TYPES["pred"]), self.write(other, TYPES["pred"])

        def step(active: Active) -> None:
            results = first(), second()
            np.copyto(out, results[0], where=active)
            np.copyto(inverse, results[1], where=active)

        return step

    def _selp(self, instruction: Instruction, to: str, a: str, b: str, c: str) -> Step:
        dtype, which = TYPES[instruction.parts[1]], self.predicate(c)
        x, y = self.read(a, dtype), self.read(b, dtype)
        return self.assign(to, dtype, lambda: np.where(which(), x, y))

    def _cvt(self, instruction: Instruction, to: str, *given: str) -> Step | None:
        *mode, target, source = instruction.parts[1:]
        if target in ("f16x2", "bf16x2") and mode == ["rn"] and source == "f32":
            high, low = (self.read(operand, TYPES["f32"]) for operand in given)
            halves = self.array(to).view(np.uint16).reshape(-1, 2)

            def step(active: Active) -> None:
                for k, value in enumerate((low, high)):
                    np.copyto(halves[:, k], _from_float(value, target[:-2]).view(np.uint16), where=active)

            return step
        (operand,) = given
        value, whole = self.read(operand, TYPES[source]), "f" not in target
        widen = _bfloat_to_float if source == "bf16" else lambda v: v
        if "f" in source and whole:
            rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[mode[0]]
            limits = np.iinfo(TYPES[target])
            if len(mode) > 1 or TYPES[target].itemsize == 8:
                return None  # a limit of 64 bits is no float64
            return self.assign(
                to,
                TYPES[target],
                lambda: np.nan_to_num(np.clip(rounding(widen(value).astype("f8")), limits.min, limits.max)),
            )
        if mode not in ([], ["rn"]):
            return None
        if whole:
            return self.assign(to, TYPES[target], lambda: value.astype(TYPES[target]))
        return self.assign(to, TYPES[target], lambda: _from_float(widen(value), target))


def _elements(operand: str) -> list[str]:
    return re.split(r"\s*,\s*", operand.strip("{} "))


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounded towards zero."""
    return np.floor_divide(a - np.fmod(a, b), b)


def _bfloat_to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _from_float(values: np.ndarray, kind: str) -> np.ndarray:
    """Rounded to the nearest, ties to even."""
    if kind != "bf16":
        return values.astype(TYPES[kind])
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


# ---- a b + c, rounded once ----


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """In float64 the product is exact, and a sum rounded to odd there rounds to float32 as the exact one does."""
    return _to_odd(*_two_sum(a.astype(np.float64) * b, c.astype(np.float64))).astype(np.float32)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008; where nothing over- or underflows."""
    high, low = _two_product(a, b)
    middle, lowest = _two_sum(c, low)
    top, rest = _two_sum(high, middle)
    exact = top + _to_odd(*_two_sum(rest, lowest))
    return np.where(np.isfinite(exact), exact, a * b + c)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a + b, and what rounding it left."""
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a b, and what rounding it left: Dekker's."""

    def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = x * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product, (ah, al), (bh, bl) = a * b, halves(a), halves(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _to_odd(total: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """total + rest, rounded to the neighbour with an odd last bit unless it is exact."""
    bits = total.view(np.int64)
    inexact = (np.abs(rest) > 0) & (bits & 1 == 0)
    return (bits + inexact * np.where((rest < 0) == (total < 0), 1, -1)).view(np.float64)

"""Programs drawn at random for as long as one likes: every number of every step, all that fails, and what is left.

python -m soak --minutes 60    # in the folder tests; `make soak` is ten minutes of it
python -m soak --seed 7        # goes on from a seed that a failure named
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Annotated

import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .program import FAULTS, IMPLS, Program, programs
from .run import end, run

A_ROUND = 20  # programs that have a seed in common
WARM = 30  # programs of a rank before what it holds counts
MORE = {"eager": 0.25, "compiled": 16.0}  # MB a program that a rank may grow by on the average; generated code stays
AGAIN = 30  # times that an eager program is repeated after each round; the first half of them warms up
SPARE = 4  # descriptors and threads that it may have more than when it was warm


@dataclass
class Soak:
    """Runs programs one after another, and remembers what the ranks held after each."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    eager: Program | None = None  # the last that was
    grown: list[float] = field(default_factory=list)  # MB a program, where the same eager one is repeated
    delays: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    held: defaultdict[tuple[int, int], list[tuple[str, dict[str, int]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def run(self, program: Program) -> None:
        """Run one and hold what is left to what was there before."""
        result = run(program)
        if isinstance(result, tuple):
            what, seconds = result
            self.delays[what].append(seconds)
            return
        how = "eager" if program.compiled == "no" else "compiled"
        self.eager = program if how == "eager" else self.eager
        self.counts[program.impl, program.compiled] += 1
        for rank, holds in enumerate(result):
            history = self.held[program.world_size, rank]
            history.append((how, holds))
            for kind in ("descriptors", "threads"):
                warm = max(before[kind] for _, before in history[:WARM])
                assert holds[kind] <= warm + SPARE, f"rank {rank} holds {holds[kind]} {kind}, {warm} when it was warm"

    def run_again(self) -> None:
        """Repeat the last eager program: what a rank grows by then is not what compiled code left, nor a new shape."""
        if self.eager is not None:
            held = [run(self.eager) for _ in range(AGAIN)]
            ranks = zip(held[AGAIN // 2], held[-1], strict=True)
            self.grown += [(after["memory"] - before["memory"]) / (AGAIN // 2) / 1e6 for before, after in ranks]

    def growth(self, how: str) -> float:
        """MB by which a rank has grown in an eager or compiled program, on the average, once it was warm."""
        if how == "eager":
            return sum(self.grown) / len(self.grown) if self.grown else 0.0
        steps = [
            after[1]["memory"] - before[1]["memory"]
            for history in self.held.values()
            for before, after in zip(history[WARM:], history[WARM + 1 :], strict=False)
            if after[0] == how
        ]
        return sum(steps) / len(steps) / 1e6 if steps else 0.0

    def report(self, console: Console) -> None:
        """Say what ran, what failed as it should and how soon, and what is held."""
        backends = sorted({backend for _, backend in self.counts})
        table = Table("programs", *(f"{b} compiled" if b == "no" else b for b in backends))
        for impl in IMPLS:
            table.add_row(impl, *(str(self.counts[impl, backend]) for backend in backends))
        console.print(table)
        table = Table("a rank …", "times", "slowest error, s")
        for what in FAULTS:
            seconds = self.delays[what]
            table.add_row(what, str(len(seconds)), f"{max(seconds):.2f}" if seconds else "")
        console.print(table)
        for how, most in MORE.items():
            console.print(f"memory of a rank: {self.growth(how):+.3f} MB for each {how} program (at most {most})")


def main(
    minutes: Annotated[float, typer.Option(help="how long")] = 10,
    seed: Annotated[int, typer.Option(help="of the first round; those after it count on")] = 0,
) -> None:
    """Run rounds of programs until the time is over or something fails."""
    console, soak = Console(), Soak()
    start = time.monotonic()

    def over() -> bool:
        return time.monotonic() - start > 60 * minutes

    def one_round(seed: int) -> None:
        @seeded(seed)
        @settings(
            max_examples=A_ROUND,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(programs())
        def check(program: Program) -> None:
            if failed or not over():
                try:
                    soak.run(program)
                except BaseException as error:
                    failed.append((program, error))
                    raise

        failed: list[tuple[Program, BaseException]] = []
        try:
            check()
        except BaseException as error:
            if not failed:
                raise
            program, what = failed[-1]
            plain = dict(markup=False, highlight=False, soft_wrap=True)
            console.print(f"\nseed {seed}: {type(what).__name__}: {what}\n", **plain)
            if error is not what:  # it did not fail again
                console.print(f"{error}\n", **plain)
            console.print("The smallest program that fails, as a file to run in the folder tests:\n")
            console.print(program.source(), **plain)
            raise typer.Exit(1) from None

    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("soaking", total=60 * minutes)
            while not over():
                one_round(seed)
                soak.run_again()
                seed += 1
                progress.update(bar, completed=time.monotonic() - start, description=f"seed {seed}")
    finally:
        end()
        soak.report(console)
    for how, most in MORE.items():
        if soak.growth(how) > most:
            console.print(f"memory grows: {soak.growth(how):.3f} MB for each {how} program")
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

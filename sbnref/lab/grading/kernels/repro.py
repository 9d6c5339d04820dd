"""A program that shows a failure of a task's function by itself."""

from __future__ import annotations

import math
from pathlib import Path

from ...tasks import Task
from .cases import Case
from .report import Fault

_COMPARE = """    std::vector<{type}> {name}_given({n});
    cudaMemcpy({name}_given.data(), {name}, {n} * sizeof({type}), cudaMemcpyDeviceToHost);
    for (int i = 0; i < {n}; ++i) {{
        const double given = {name}_given[i], expected = {name}_expected[i];
        if (given == expected || fabs(given - expected) <= {name}_allowed[i]) continue;
        printf("{name}[%d] is %g; expected %g\\n", i, given, expected);
        wrong = 1;
    }}"""


def program(file: Path, task: Task, case: Case, fault: Fault) -> str:
    """A CUDA program that calls a task's function on a case, and compares the results with the expected ones."""
    expected = task.expected(case.given)
    first: list[str] = []
    compare: list[str] = []
    names: list[str] = []
    for p in task.parameters:
        names.append(p.name)
        if p.is_array:
            compare.insert(0, f"    cudaFree({p.name});")
        else:
            first.append(f"    const {p.type} {p.name} = {case.given[p.name]};")
            continue
        values = expected[p.name] if p.is_output else case.given[p.name]
        numbers = ", ".join(_literal(v) for v in values.flatten().tolist()) or "0"
        kind = p.type if not p.is_output else "double"
        first.append(f"    const {kind} {p.name}_{'expected' if p.is_output else 'values'}[] = {{{numbers}}};")
        first.append(f"    {p.type}* {p.name};\n    cudaMalloc(&{p.name}, {values.numel()} * sizeof({p.type}));")
        if not p.is_output:
            size = f"{values.numel()} * sizeof({p.type})"
            first.append(f"    cudaMemcpy({p.name}, {p.name}_values, {size}, cudaMemcpyHostToDevice);")
            continue
        allowed = ", ".join(map(_literal, task.allowed(case.given, values).expand_as(values).flatten().tolist())) or "0"
        first.append(f"    const double {p.name}_allowed[] = {{{allowed}}};")
        compare.insert(0, _COMPARE.format(name=p.name, type=p.type, n=values.numel()))
    body = "\n".join([*first, f"    {task.name}({', '.join(names)});", "    int wrong = 0;", *compare])
    return (
        f"// {' '.join(fault.what.split())}. Run it with: sbnref lab run repro.cu --order {case.order}\n"
        f'#include "{file}"\n\n#include <cstdio>\n#include <vector>\n\nint main() {{\n{body}\n    return wrong;\n}}\n'
    )


def _literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else "NAN" if math.isnan(value) else f"{'-' * (value < 0)}INFINITY"

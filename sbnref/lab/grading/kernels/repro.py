"""Write a self-contained program that reproduces a failure of a task's function."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...tasks import Task
from .report import Fault

if TYPE_CHECKING:
    from .cases import Case

_COMPARE = """    std::vector<{type}> {name}_given({n});
    cudaMemcpy({name}_given.data(), {name}, {n} * sizeof({type}), cudaMemcpyDeviceToHost);
    for (int i = 0; i < {n}; ++i) {{
        const double given = {name}_given[i], expected = {name}_expected[i];
        if (given == expected || fabs(given - expected) <= {name}_allowed[i]) continue;
        printf("{name}[%d] is %g; expected %g\\n", i, given, expected);
        wrong = 1;
    }}"""


def program(file: Path, task: Task, case: Case, fault: Fault) -> str:
    """Return a CUDA program that calls a task's function on a case, and compares the results with the expected ones."""
    given, expected = case.given, task.expected(case.given)
    before: list[str] = []
    after: list[str] = []
    for p in task.parameters:
        if not p.is_array:
            before.append(f"    const {p.type} {p.name} = {given[p.name]};")
            continue
        values = (given | expected)[p.name]
        size = f"{values.numel()} * sizeof({p.type})"
        before.append(f"    {p.type}* {p.name};\n    cudaMalloc(&{p.name}, {size});")
        after.insert(0, f"    cudaFree({p.name});")
        if p.is_output:
            allowed = task.allowed(given, values).expand_as(values)
            before += [_array("double", f"{p.name}_expected", values), _array("double", f"{p.name}_allowed", allowed)]
            after.insert(0, _COMPARE.format(name=p.name, type=p.type, n=values.numel()))
        else:
            before.append(_array(p.type, f"{p.name}_values", values))
            before.append(f"    cudaMemcpy({p.name}, {p.name}_values, {size}, cudaMemcpyHostToDevice);")
    call = f"    {task.name}({', '.join(p.name for p in task.parameters)});"
    body = "\n".join([*before, call, "    int wrong = 0;", *after])
    return (
        f"// {' '.join(fault.what.split())}. Run it with: sbnref lab run repro.cu --order {case.order}\n"
        f'#include "{file}"\n\n#include <cstdio>\n#include <vector>\n\nint main() {{\n{body}\n    return wrong;\n}}\n'
    )


def _array(kind: str, name: str, values: Tensor) -> str:
    return f"    const {kind} {name}[] = {{{', '.join(map(_literal, values.flatten().tolist())) or '0'}}};"


def _literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else "NAN" if math.isnan(value) else f"{'-' * (value < 0)}INFINITY"

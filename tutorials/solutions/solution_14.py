"""Solutions to tutorial 14, how the sanitizer works."""

import re
import runpy
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # the tutorial draws a figure
sys.path.append(str(Path(__file__).parents[1]))
lesson = runpy.run_path(str(Path(__file__).parents[1] / "14_how_the_watch_works.py"))
watch, KERNEL, WATCH = lesson["watch"], lesson["KERNEL"], lesson["WATCH"]


def changed(text, was, now):
    """Return a text with a change; the old part must occur once."""
    assert text.count(was) == 1
    return text.replace(was, now)


# 1. Thread 1 reads the element that thread 2 should have written.
unwritten = changed(
    WATCH,
    "    if (races(e.write))",
    """    if (!writes && e.write.thread < 0) report("reads uninitialized", i, -1, pc);
    if (races(e.write))""",
)
report = watch(
    1, changed(KERNEL, "{ s[t] = t; }", "{ if (t != 2) s[t] = t; }"), unwritten
)
print("1.", report)
assert "thread 1 reads uninitialized [2], line 5" in report
assert "uninitialized" not in watch(1, library=unwritten)

# 2. At -O2 the value stays in a register: one read and one write are left. nvcc also drops
# these accesses, because no other thread may read *s between them. The library counts the
# accesses that an optimizing compiler leaves.
calls = {}
source = lesson["save"](
    "twice.cpp", "float twice(float* s) { *s += 1; *s += 1; return *s; }"
)
for level in ("-O0", "-O2"):
    assembly = lesson["cxx"](level, "-fsanitize=thread", "-S", "-o", "-", source)
    calls[level] = re.findall(
        r"__tsan_(?:read|write)4", "\n".join(re.findall(lesson["CALLS"], assembly))
    )
print("2.", {level: len(found) for level, found in calls.items()})
assert len(calls["-O0"]) == 5
assert calls["-O2"] == ["__tsan_read4", "__tsan_write4"]

# 3. All four threads read element 0 after the barrier. If these reads count as writes,
# the last three follow a write of another thread.
same = changed(KERNEL, "s[3 - t]", "s[0]")
assert watch(1, same).startswith("exit status")
report = watch(1, same, changed(WATCH, "access(p, false,", "access(p, true,"))
print("3.", report)
assert report.count("overwrites [0]") == 3

"""Submissions that try to get points without the work, and honest ones that look odd."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sbnref
from sbnref.lab.grading.check import check
from sbnref.lab.sandbox.process import Job, Student, copies

pytestmark = pytest.mark.slow

WRONG = """
import torch
def forward_stats(x, weight):
    return torch.zeros(2 * x.shape[1] + 2, dtype=torch.float64)
"""

LOOK_AROUND = """
def look_around():
    import glob
    text = b""
    for place in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            text += open(place, "rb").read()
        except OSError:
            pass
    return text
"""

# Code placed before or around a wrong function. None may score.
CHEATS = {
    "takes the reference": "from sbnref.impls.reference import *",
    "takes it when called": """
def forward_stats(x, weight):
    return __import__("importlib").import_module("sbnref.impls.reference").forward_stats(x, weight)
""",
    "opens the door first": """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "_Refuse"]
import sbnref.impls.reference as r
forward_stats = r.forward_stats
""",
    "reads the reference's file": """
import importlib.util, sys, types
places = [p for f in sys.meta_path for p in getattr(sys.modules.get(f.__module__), "MAPPING", {}).values()]
places += [p + "/sbnref" for p in sys.path] + [PACKAGE]
text = "".join(open(p + "/impls/reference.py").read() for p in dict.fromkeys(places)
               if __import__("os").path.exists(p + "/impls/reference.py"))
if text:
    exec(text.replace("from ..", "from sbnref."), globals())
""",
    "patches comparisons and random numbers": """
torch.equal = torch.allclose = lambda *a, **k: True
torch.Tensor.__eq__ = torch.Tensor.__le__ = torch.Tensor.eq = lambda *a: torch.tensor(True)
torch.Tensor.abs = lambda t: t * 0
torch.randn = torch.rand = lambda *a, **k: torch.zeros(a)
torch.Generator.manual_seed = lambda g, n: g
torch.manual_seed(0)
""",
    "forks a second self": "import os; os.fork()",
    "writes results by hand": r"""
import glob, json
line = json.dumps({"stage": "forward_stats", "status": "passed", "failure": None, "tried": 100, "score": 1.0}) + "\n"
for number in range(3, 64):
    try: os.write(number, line.encode())
    except OSError: pass
""",
    "answers before it is asked": r"""
sys.path.append(os.getcwd()); sys.path.append(os.environ["HOME"] + "/grader")
import channel, socket
for number in range(1, 200):
    channel.send(socket.socket(fileno=os.dup(int(sys.argv[1]))), {"id": number, "result": torch.zeros(4).double()})
""",
    "answers for others": r"""
import threading, time, socket
def flood():
    sys.path.append(os.environ["HOME"] + "/grader")
    import channel
    mine = socket.socket(fileno=os.dup(int(sys.argv[1])))
    for number in range(10_000):
        channel.send(mine, {"id": number % 10, "result": None})
threading.Thread(target=flood, daemon=True).start()
""",
    "says that it is 4 GiB long": r'os.write(int(sys.argv[1]), b"\xff" * 8)',
    "walks the frames": """
import inspect
for frame in inspect.stack():
    for name in list(frame.frame.f_globals):
        if name in ("_answer", "main"):
            getattr(frame.frame.f_globals[name], "__dict__", {})
    found = frame.frame.f_locals.get("job")
    if isinstance(found, dict):
        found.update(stages=[], forbidden=[], target="sbnref.impls.reference")
""",
    "replaces who answers": """
import sys
main = sys.modules["__main__"]
main._answer = lambda function, request, words: {"id": request["id"], "result": None, "status": "passed"}
""",
    "looks for what is expected": """
import gc
def forward_stats(x, weight):
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.shape == (2 * x.shape[1] + 2,):
            return found
    return torch.zeros(2 * x.shape[1] + 2, dtype=torch.float64)
""",
    "reads other processes": f"""
{LOOK_AROUND}
raise RuntimeError("read " + str(b"sword" + b"fish" in look_around()))
""",
    "is slow": """
def forward_stats(x, weight):
    __import__("time").sleep(1)
""",
    "stops who waits for it": r"""
for name in ("channel", "confine", "user_module"):
    try: open(os.environ["HOME"] + f"/grader/{name}.py", "w").write(f"open({OUTSIDE!r}, 'w')")
    except OSError: pass
os._exit(128 + 19)
""",
    "calls through the file system": r"""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try: socket.socket(socket.AF_UNIX, kind).connect(CALLED)
    except OSError: pass
for terminal in os.listdir("/dev/pts") if os.path.isdir("/dev/pts") else ():
    raise RuntimeError("read True " + terminal)
""",
    "sends sizes that are none": r"""
import struct
for text in (b'5', b'{"tensor":["uint8",["a",300000000],[]]}', b'{"tensor":["uint8",[-1],[1]]}', b"[" * 100_000):
    os.write(int(sys.argv[1]), struct.pack("<II", len(text), 0) + text)
""",
    "tells functions that are none": r"""
text = b'{"dict":[["functions",{"is":5}]]}'
os.write(int(sys.argv[1]), len(text).to_bytes(4, "little") + bytes(4) + text)
""",
    "paints the screen": r'raise RuntimeError("\x1b[2J4 of 4 passed, score 1.00")',
    "leaves something for the end": """import atexit; atexit.register(lambda: print('{"score": 1.0}'))""",
    "ends its parents": """
import signal
for who in (os.getppid(), -1):
    try: os.kill(who, signal.SIGTERM)
    except (OSError, SystemExit): pass
""",
    "traces its parent": """
import ctypes
assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0, "could not"
""",
    "ends in time": "sys.exit(0)",
    "becomes another program": """os.execv(sys.executable, ["python", "-c", "print('4 of 4 passed, score 1.00')"])""",
    "writes elsewhere": 'open(OUTSIDE, "w").write("here")',
    "asks the network": """
import socket
socket.create_connection(("127.0.0.1", PORT), timeout=2).sendall(b"what is the answer?")
""",
    "looks at the environment": 'raise RuntimeError("read " + os.environ["SBNREF_SECRET"])',
    "returns a liar": """
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True
def forward_stats(x, weight):
    return torch.zeros(2 * x.shape[1] + 2, dtype=torch.float64).as_subclass(Liar)
""",
    "returns a bomb": """
class Bomb:
    def __reduce__(self):
        return os.system, ("touch " + OUTSIDE,)
def forward_stats(x, weight):
    return Bomb()
""",
    "is allowed nothing that is forbidden": """
def forward_stats(x, weight):
    return torch.nn.functional.batch_norm(x, None, None, training=True)
""",
}


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """Start targets that submissions must not reach: two servers, and a process with a secret."""
    place = str(tmp_path_factory.mktemp("sockets") / "called")
    command = [sys.executable, "-c", "import time; time.sleep(600)", "swordfish"]
    with (
        pytest.MonkeyPatch.context() as patch,
        socket.create_server(("127.0.0.1", 0)) as internet,
        socket.socket(socket.AF_UNIX) as local,
        subprocess.Popen(command, env={"SBNREF_SECRET": "swordfish"}) as other,
    ):
        patch.setenv("SBNREF_SECRET", "swordfish")
        local.bind(place)
        local.listen()
        for server in (internet, local):
            server.settimeout(0)
        around: dict = {}
        exec(LOOK_AROUND, around)
        assert b"swordfish" in around["look_around"]()
        yield internet, local, place
        other.kill()


@pytest.fixture(scope="module")
def _confined(tmp_path_factory):
    """Skip where submissions cannot be confined, since they would have the rights of the tests."""
    unconfined = graded(tmp_path_factory.mktemp("right"), RIGHT).unconfined
    if unconfined is not None:
        pytest.skip(f"no cheat was tried: this machine does not confine what is graded: {unconfined}")


def graded(folder, text, **options):
    (folder / "theirs.py").write_text(text)
    return check(folder / "theirs.py", ["forward_stats"], **{"examples": 8, "timeout": 20, "seed": 0, **options})


@pytest.mark.usefixtures("_confined")
@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_scores(cheat, tmp_path, neighbours):
    internet, local, called = neighbours
    outside, package, port = tmp_path / "outside", str(Path(sbnref.__file__).parent), internet.getsockname()[1]
    names = f"OUTSIDE, PORT, PACKAGE, CALLED = {str(outside)!r}, {port}, {package!r}, {called!r}\n"
    before, after = CHEATS[cheat].partition("def forward_stats")[::2]
    own = f"def forward_stats{after}" if after else ""
    text = f"import os, sys\n{names}{WRONG}\n{before}\n{own}"
    try:
        report = graded(tmp_path, text, timeout=6, forbid=["torch.nn.functional.batch_norm"])
    except ValueError as refused:
        told = str(refused)
    else:
        assert (report.unconfined, report.score) == (None, 0)
        told = str(report)
    assert not outside.exists(), "it has written outside of its folder"
    assert "swordfish" not in told
    assert "read True" not in told
    assert "\x1b[2J" not in told
    for server in (internet, local):
        with pytest.raises(BlockingIOError):
            server.accept()
    if cheat.startswith("takes"):
        assert "graded code may not import sbnref" in told


RIGHT = """
import torch
def forward_stats(x, weight):
    m, over = x.numel() // x.shape[1], [d for d in range(x.dim()) if d != 1]
    wide = x.double()
    mean = wide.sum(over) / max(m, 1)
    var = ((wide - mean.view([-1 if d == 1 else 1 for d in range(x.dim())])) ** 2).sum(over) / max(m, 1)
    return torch.cat([weight * mean, weight * var, weight * mean * mean, mean.new_tensor([weight, m])])
"""

IMPORTS = """
import os, sys, math, json, multiprocessing, numpy, subprocess, tempfile, threading, time
print("hello " * 100_000)
print('{"id": 1}')
threading.Thread(target=time.sleep, args=(30,)).start()
multiprocessing.Lock()
with tempfile.TemporaryFile() as f:
    f.write(b"1")
"""

AROUND = "right = forward_stats\ndef forward_stats(*a): return {}\n"

# Honest submissions. All score.
HONEST = {
    "with imports, prints, threads, processes and files": IMPORTS + RIGHT,
    "with a helper of a name that the grader has too": "from user_module import *\n",
    "with a callable object": RIGHT
    + "class Stats:\n  def __call__(self, *a): return right(*a)\nright, forward_stats = forward_stats, Stats()\n",
    "with numpy and autograd": RIGHT.replace(
        "wide = x.double()", "torch.set_grad_enabled(True)\n    wide = torch.from_numpy(x.double().numpy().copy())"
    ),
    "with a decorator": RIGHT.replace("def ", "import functools\n@functools.wraps(print)\ndef "),
    "with a result that is a view": RIGHT + AROUND.format("torch.stack([right(*a)] * 2, 1)[:, 0]"),
    "with a subclass of tensors": RIGHT + AROUND.format("torch.nn.Parameter(right(*a))"),
}


@pytest.mark.parametrize("work", HONEST)
def test_honest_work_scores(work, tmp_path):
    (tmp_path / "user_module.py").write_text(RIGHT)
    report = graded(tmp_path, HONEST[work])
    assert report.score == 1, str(report)


def confine_nothing(folder, monkeypatch):
    """Imitate a system that does not allow confinement."""
    broken = folder / "confine.py"
    broken.write_text("def confine(folder, hidden):\n    raise OSError('not here')\ndef end_with_parent():\n    pass\n")
    monkeypatch.setattr("sbnref.lab.sandbox.confine.__file__", str(broken))


def test_where_nothing_can_be_confined_it_is_said(tmp_path, monkeypatch):
    confine_nothing(tmp_path, monkeypatch)
    report = graded(tmp_path, RIGHT)
    assert (report.score, report.unconfined) == (1, "not here")
    assert "not confined (not here): grade strangers' code in a container" in " ".join(str(report).split())


@pytest.mark.usefixtures("_confined")
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    file = tmp_path / "theirs.py"
    file.write_text(RIGHT + "\nimport os\nif os.fork() == 0:\n    os.setsid(); __import__('time').sleep(100)\n")
    student = Student(Job(str(file)))
    student.call("forward_stats", torch.zeros(2, 3), 1)
    student.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.py"]
    student._printed._thread.join(10)  # reads the output until no process can write any more
    assert not student._printed._thread.is_alive()


def test_an_interrupt_is_none_of_the_codes_errors(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Student, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graded(tmp_path, RIGHT)


def test_a_forbidden_module_is_refused_in_a_sentence(tmp_path):
    text = RIGHT.replace("    m, over", "    import numpy\n    m, over")
    (stage,) = graded(tmp_path, text, forbid=["numpy"]).stages
    assert stage.status == "failed"
    assert "graded code may not import numpy" in stage.failure["what"]
    with pytest.raises(ValueError, match=r"to forbid, got torch\.no_such_thing"):
        graded(tmp_path, text, forbid=["torch.no_such_thing"])


def test_every_copy_of_the_package_is_hidden(tmp_path, monkeypatch):
    (tmp_path / "sbnref").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert copies() >= {Path(sbnref.__file__).parent, tmp_path / "sbnref"}

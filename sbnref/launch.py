"""Run a function on several local ranks: from a script, a test or a notebook cell, or unchanged under ``torchrun``."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any, SupportsIndex, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

try:  # sends functions of a notebook cell or of the script itself by value, all others by name
    import cloudpickle as pickle
except ImportError:  # sends importable functions only
    import pickle

T = TypeVar("T")

_starting = threading.Lock()


class RankError(RuntimeError):
    """A rank raised an exception or died. The message carries the rank's own traceback.

    Attributes:
        rank: the rank that failed first.
    """

    def __init__(self, rank: int, what: str) -> None:
        super().__init__(rank, what)  # the arguments, to be pickled
        self.rank = rank

    def __str__(self) -> str:
        return f"rank {self.rank} failed:\n\n{self.args[1]}"


def launch(fn: Callable[..., T], world_size: int, *args: Any, timeout: float = 300, **kwargs: Any) -> list[T]:
    """Run ``fn(*args, **kwargs)`` on every rank of a new process group, and return the results.

    Each rank is a process on this machine, with gloo, or with NCCL if every rank has a GPU. Under ``torchrun``, ``fn``
    runs in this process, with the rank and the world size from ``torchrun``, and every process gets all results.

    Args:
        fn: any function; inside it the default process group is initialized.
        world_size: the number of ranks.
        timeout: seconds until ranks that have not returned are ended. Under ``torchrun``, the timeout of the process
            group, unless it is initialized already: seconds until a collective raises.

    Returns:
        The results in the order of the ranks.

    Raises:
        RankError: a rank raised or died; the other ranks are ended.
        TimeoutError: not all ranks returned in time; all are ended.
        KeyboardInterrupt: the program was interrupted, which ends the ranks too.
    """
    if dist.is_torchelastic_launched():
        return _run_as_launched(fn, args, kwargs, timeout)
    with Ranks(world_size, timeout=timeout) as ranks:
        return ranks.run(fn, *args, **kwargs)


class Ranks:
    """Ranks for several runs: the processes start once and run one function after another.

    Use it as a context manager, which ends the processes. A failure or a timeout also ends them, and the next
    :meth:`run` starts new ones.

    Args:
        world_size: the number of ranks.
        timeout: seconds for one :meth:`run`.
    """

    def __init__(self, world_size: int, *, timeout: float = 300) -> None:
        if isinstance(world_size, bool) or not isinstance(world_size, SupportsIndex) or world_size < 1:
            raise ValueError(f"expected world_size to be an integer of at least 1, got {world_size!r}")
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"expected timeout to be a positive and finite number of seconds, got {timeout!r}")
        self.world_size = world_size
        self.timeout = timeout
        self._executors: list[ProcessPoolExecutor] = []  # one single-process executor per rank
        self._processes: list[BaseProcess] = []
        self._store_folder = ExitStack()  # the folder where the ranks find each other

    def run(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> list[T]:
        """Run ``fn(*args, **kwargs)`` on every rank; see :func:`launch`."""
        call = pickle.dumps((fn, args, kwargs))
        if not self._executors:
            self._start()
        return self._collect([_submit(executor, call) for executor in self._executors])

    def close(self) -> None:
        """End the processes and wait until they are gone."""
        executors, self._executors = self._executors, []
        for executor in executors:
            with suppress(BrokenExecutor):  # a rank that died between two runs
                executor.submit(_leave_group)
        for executor in executors:
            executor.shutdown()
        self._store_folder.close()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._kill()  # busy ranks would not leave

    def _start(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="sbnref-", ignore_cleanup_errors=True)
        where = self.world_size, self._store_folder.enter_context(folder), self.timeout
        self._executors = [
            ProcessPoolExecutor(
                1, _start_method(), exec, (_JOIN, {"environ": dict(os.environ), "where": (rank, *where)})
            )
            for rank in range(self.world_size)
        ]
        self._processes = []
        starts: list[Future[bytes]] = []
        with _nameless_main():
            for executor in self._executors:
                starts.append(executor.submit(_getpid))  # starts the rank's process
                # Leave the rank as the only writer: its death while it sends a result then ends the result.
                executor._result_queue._writer.close()  # type: ignore[attr-defined]
                self._processes += executor._processes.values()
        self._collect(starts)

    def _collect(self, futures: list[Future[bytes]]) -> list[Any]:
        try:
            done, running = wait(futures, self.timeout, FIRST_EXCEPTION)
        except BaseException:  # also an interrupt, or an exception from a signal handler
            self._kill()
            raise
        failed = [rank for rank, future in enumerate(futures) if future in done and future.exception() is not None]
        if failed and "gloo/transport" in str(futures[failed[0]].exception()):  # it lost another rank: report that one
            dead = connection.wait([process.sentinel for process in self._processes], timeout=2)
            failed = [rank for rank, process in enumerate(self._processes) if process.sentinel in dead] or failed
        if failed or running:
            self._kill()
        if failed:
            raise RankError(failed[0], self._what_happened(failed[0], futures[failed[0]]))
        if running:
            late = [rank for rank, future in enumerate(futures) if future in running]
            raise TimeoutError(
                f"ranks {late} of {self.world_size} had not returned after {self.timeout} s; "
                "if a layer waits for another rank, set SBNREF_DEBUG=1 to find out why"
            )
        return [pickle.loads(future.result()) for future in futures]

    def _kill(self) -> None:
        executors, self._executors = self._executors, []
        for process in self._processes:
            process.kill()
        for executor in executors:
            executor.shutdown(cancel_futures=True)
        self._store_folder.close()

    def _what_happened(self, rank: int, future: Future[bytes]) -> str:
        """Return a rank's own traceback, or how it died."""
        error = future.exception()
        code = self._processes[rank].exitcode if isinstance(error, BrokenExecutor) and self._processes else None
        if code is None:
            return str(error)
        how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}"


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Keep processes started in this block from running the parent's script again.

    They get its functions by value, so a script needs no ``if __name__ == "__main__":`` and a notebook no file.
    """
    with _starting:  # one thread at a time
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class _RemoteError(Exception):
    """Carry a rank's traceback as text, because not every exception can be pickled."""


def _submit(executor: ProcessPoolExecutor, call: bytes) -> Future[bytes]:
    """Submit a call to a rank. A rank that died since the last run fails like one that dies in this run."""
    try:
        return executor.submit(_call, call)
    except BrokenExecutor as error:
        dead: Future[bytes] = Future()
        dead.set_exception(error)
        return dead


def _call(call: bytes) -> bytes:
    try:
        fn, args, kwargs = pickle.loads(call)
        return pickle.dumps(fn(*args, **kwargs))
    except BaseException:
        raise _RemoteError(_ends(traceback.format_exc())) from None


def _ends(text: str, most: int = 20_000) -> str:
    """Return the text, without its middle if it is long."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[: most // 2]}\n[... {left_out:,} characters ...]\n{text[-most // 2 :]}"


def _getpid() -> bytes:
    return pickle.dumps(os.getpid())


def _start_method() -> BaseContext:
    """Fork ranks from a server that has imported PyTorch where that is safe; start new processes elsewhere."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "cloudpickle"])
    return context


# The server keeps the environment from its start, and importing sbnref reads some of the variables.
_JOIN = """
import os
os.environ.clear()
os.environ.update(environ)
from sbnref.launch import _join_group
_join_group(*where)
"""


def _join_group(rank: int, world_size: int, folder: str, timeout: float) -> None:
    if "numpy" in sys.modules:  # imported before the fork, so all ranks would draw the same numbers
        sys.modules["numpy"].random.seed()
    Finalize(None, _exit_now, exitpriority=-100)
    threading.Thread(target=_exit_with_parent, args=(folder,), daemon=True).start()
    if os.name != "nt":  # gloo on Windows accepts no interface name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    store = dist.FileStore(os.path.join(folder, "store"), world_size)  # a file:// address cannot have every character
    longer = max(default_pg_timeout, timedelta(seconds=timeout + 60))  # so that `launch` reports a rank that is late
    store.set_timeout(longer)
    _init_process_group(rank, world_size, store=store, rank=rank, world_size=world_size, timeout=longer)


def _leave_group() -> None:
    if dist.is_initialized() and not hasattr(sys, "last_type"):  # after an error, a thread may wait for another rank
        gc.collect()  # a DistributedDataParallel freed last would wait for gloo's threads with the lock that they need
        dist.destroy_process_group()


def _exit_now() -> None:
    """End the rank without finalizing the interpreter.

    The function may have left a model or a process group behind. Then gloo's threads are still alive, and a thread that
    releases its last tensor while the interpreter shuts down aborts the process (PyTorch's issue 190489).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exit_with_parent(folder: str) -> None:
    """End this rank and delete the folder when the parent dies: a killed parent cannot do it."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _init_process_group(local_rank: int, local_world_size: int, **where: Any) -> None:
    if torch.cuda.device_count() >= local_world_size:
        torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", **where)
    else:
        dist.init_process_group("gloo", **where)


def _run_as_launched(fn: Callable[..., T], args: Any, kwargs: Any, timeout: float) -> list[T]:
    mine = not dist.is_initialized()
    if mine:
        local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _init_process_group(*local, timeout=timedelta(seconds=timeout))
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, fn(*args, **kwargs))
    if mine:
        atexit.register(_leave_group)
    return results

"""What the code that is graded cannot reach, on Linux: other processes, the network, files but to read, the package.

A process starts a user namespace, in which it may arrange its own view of the system, and gives up the rights that it
has there before any of that code runs: user_namespaces(7), mount_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_NEW_NS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _NOEXEC = 0x1000, 0x4000, 0x40000, 2, 4, 8
_MOUNT_SETATTR, _CAPSET = 442, {"x86_64": 126, "aarch64": 91}  # numbers of system calls
_AT_FDCWD, _AT_RECURSIVE, _RDONLY = -100, 0x8000, 1
_SET_PDEATHSIG, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 1, 24, 38


def confine(folder: str, hidden: Sequence[str]) -> None:
    """Go on in a descendant that can write to ``folder`` only, sees nothing in ``hidden``, and has no network.

    The process that called waits for it, ends as it does, and never returns.

    Raises:
        OSError: this system does not allow it. The process is as it was.
    """
    if sys.platform != "linux" or os.uname().machine not in _CAPSET:
        raise OSError("there are no namespaces on this platform")
    told, tell = os.pipe()
    if (child := os.fork()) != 0:  # a process that only waits: were it refused, it has given up nothing
        os.close(tell)
        if reason := os.read(told, 1000):
            os.waitpid(child, 0)
            raise OSError(reason.decode())
        _end_like(child)
    os.close(told)
    try:
        _do("prctl", _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        uid, gid = os.getuid(), os.getgid()
        _do("unshare", _NEW_USER | _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        if (child := os.fork()) != 0:
            os.close(tell)
            _end_like(child)
        # This is the first process of the new namespace. All others end with it; no signal of theirs can end it, so it
        # is none for code that may want to.
        _do("prctl", _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _arrange(folder, hidden)
        if (child := os.fork()) != 0:
            os.close(tell)
            _end_with(child)
        _give_up_rights()
    except OSError as error:
        os.write(tell, str(error).encode())
        os._exit(1)
    os.close(tell)


def _arrange(folder: str, hidden: Sequence[str]) -> None:
    empty = os.path.join(folder, "empty")
    os.mkdir(empty)
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    for path in hidden:
        _mount(empty, path, None, _BIND)
    _mount(folder, folder, None, _BIND)
    _set_attributes("/", _AT_RECURSIVE, to=_RDONLY)
    _set_attributes(folder, 0, clear=_RDONLY)
    os.chdir(folder)


def _give_up_rights() -> None:
    for capability in range(64):
        ctypes.CDLL(None).prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # those that do not exist are refused
    _do("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _do("syscall", _CAPSET[os.uname().machine], header, none)


def _end_with(child: int) -> NoReturn:
    """Wait for a child, and for those that others left, and tell by the exit code how it ended, as shells do."""
    while (ended := os.wait())[0] != child:
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    os._exit(code if code >= 0 else 128 - code)


def _end_like(child: int) -> NoReturn:
    """Wait for a child and end as it did, by the same signal if it was one."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    number = -code if code < 0 else code - 128
    if number > 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(code)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    source_, target_, kind_ = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    _do("mount", source_, target_, kind_, flags, None, what=f"mount {target}")


def _set_attributes(path: str, flags: int, to: int = 0, clear: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(to, clear, 0, 0)
    size = ctypes.sizeof(attributes)
    _do(
        "syscall", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, ctypes.c_size_t(size),
        what=f"mount_setattr {path}",
    )  # fmt: skip


def _do(function: str, *arguments: object, what: str | None = None) -> None:
    """Call a function of the C library that says by its result whether it could."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{what or function}: {os.strerror(error)}")

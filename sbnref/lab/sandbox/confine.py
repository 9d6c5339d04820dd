"""Confine submitted code on Linux: no other processes, no sockets, no writable files outside its folder, no sbnref.

The process starts a user namespace, in which it can change its own view of the system, and gives up its rights there
before any submitted code runs: user_namespaces(7), mount_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Sequence
from typing import NoReturn

_NEW_NS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _NOEXEC = 0x1000, 0x4000, 0x40000, 2, 4, 8
_MOUNT_SETATTR, _CAPSET = 442, {"x86_64": 126, "aarch64": 91}  # numbers of system calls
_AT_FDCWD, _AT_RECURSIVE, _RDONLY = -100, 0x8000, 1
_SET_PDEATHSIG, _SET_SECCOMP, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 1, 22, 24, 38
# From the audit interface: the architecture's number, and the system calls that make or connect sockets, with io_uring.
_CALLS = {"x86_64": (0xC000003E, (41, 42, 425)), "aarch64": (0xC00000B7, (198, 203, 425))}


def confine(folder: str, hidden: Sequence[str]) -> None:
    """Continue in a descendant that can write only to ``folder``, cannot see ``hidden``, and has no network.

    The calling process waits for the descendant, ends as it does, and never returns.

    Raises:
        OSError: this system does not allow it. The process is unchanged.
    """
    if sys.platform != "linux" or os.uname().machine not in _CAPSET:
        raise OSError("this platform has no namespaces")
    read_end, write_end = os.pipe()
    if (child := os.fork()) != 0:  # this process only waits, so it is unchanged if the child fails
        os.close(write_end)
        if reason := os.read(read_end, 1000):
            os.waitpid(child, 0)
            raise OSError(reason.decode())
        _end_with(child)
    os.close(read_end)
    try:
        end_with_parent()
        uid, gid = os.getuid(), os.getgid()
        _do("unshare", _NEW_USER | _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        if (child := os.fork()) != 0:
            os.close(write_end)
            _end_with(child)
        # This is the first process of the new namespace. All others end with it, and their signals cannot end it. The
        # submitted code runs in a child, which signals can end.
        end_with_parent()
        _arrange(folder, hidden)
        if (child := os.fork()) != 0:
            os.close(write_end)
            _end_with(child)
        _give_up_rights()
    except OSError as error:
        os.write(write_end, str(error).encode())
        os._exit(1)
    os.close(write_end)


def end_with_parent() -> None:
    """Make this process end with its parent."""
    if sys.platform == "linux":
        _do("prctl", _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _arrange(folder: str, hidden: Sequence[str]) -> None:
    empty, devices, beside = (os.path.join(folder, name) for name in ("empty", "devices", "grader"))
    os.mkdir(empty)
    os.mkdir(devices)
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _mount("tmpfs", devices, "tmpfs", _NOSUID | _NOEXEC)
    for name in ("null", "zero", "full", "random", "urandom"):
        open(os.path.join(devices, name), "w").close()
        _mount(f"/dev/{name}", os.path.join(devices, name), None, _BIND)
    os.symlink("/proc/self/fd", os.path.join(devices, "fd"))
    os.mkdir(os.path.join(devices, "shm"))
    _mount(devices, "/dev", None, _BIND | _REC)
    for path in hidden:
        _mount("/dev/null" if os.path.isfile(path) else empty, path, None, _BIND)
    _mount(folder, folder, None, _BIND)
    _mount(beside, beside, None, _BIND)
    _set_attributes("/", _AT_RECURSIVE, to=_RDONLY)
    _set_attributes(folder, 0, clear=_RDONLY)
    _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV | _NOEXEC)
    os.chdir(folder)


def _give_up_rights() -> None:
    for capability in range(64):
        ctypes.CDLL(None).prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # fails for capabilities that do not exist
    _do("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _do("syscall", _CAPSET[os.uname().machine], header, none)
    _refuse_sockets()


def _refuse_sockets() -> None:
    """Forbid all sockets, even in the file system: seccomp(2). Connected pairs (socketpair) are still allowed."""
    architecture, calls = _CALLS[os.uname().machine]
    load, equal, above, end = 0x20, 0x15, 0x25, 0x06  # BPF: load a word, compare and skip, end with a verdict
    killed, refused, allowed = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, killed), (load, 0, 0, 0)]
    program += [(above, 0, 1, 0x3FFFFFFF), (end, 0, 0, refused)]  # the x32 numbers of system calls
    for call in calls:
        program += [(equal, 0, 1, call), (end, 0, 0, refused)]
    program.append((end, 0, 0, allowed))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    lines = ctypes.create_string_buffer(code, len(code))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(lines)))
    _do("prctl", _SET_SECCOMP, 2, whole, 0, 0)


def _end_with(child: int) -> NoReturn:
    """Wait for a child and for orphans, and exit with the child's exit code, or 128 + its signal, as shells do."""
    code = 1
    try:
        while (ended := os.wait())[0] != child:
            pass
        code = os.waitstatus_to_exitcode(ended[1])
    finally:  # never return: the code after the call is for the child only
        os._exit(code if code >= 0 else 128 - code)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    source_, target_, kind_ = (None if text is None else os.fsencode(text) for text in (source, target, kind))
    _do("mount", source_, target_, kind_, flags, None, what=f"mount {target}")


def _set_attributes(path: str, flags: int, to: int = 0, clear: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(to, clear, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    call = (_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, size)
    _do("syscall", *call, what=f"mount_setattr {path}")


def _do(function: str, *arguments: object, what: str | None = None) -> None:
    """Call a function of the C library, and raise OSError if it returns -1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{what or function}: {os.strerror(error)}")

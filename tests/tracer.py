"""A forked child whose system calls that change files are counted, and at one of which it is killed or refused.

The child installs a seccomp filter that stops it at these calls alone, and its parent answers each stop by ptrace. Both
need no privileges and no other program; they are written here for Linux on x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CALLS = {  # number on x86-64 -> name
    1: "write", 18: "pwrite64", 20: "writev", 40: "sendfile", 73: "flock", 74: "fsync", 75: "fdatasync", 76: "truncate",
    77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 88: "symlink", 90: "chmod",
    91: "fchmod", 257: "openat", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat",
    268: "fchmodat", 285: "fallocate", 316: "renameat2", 326: "copy_file_range",
}  # fmt: skip
REMOVING = {"flock", "rmdir", "unlink", "unlinkat"}  # which a full disk allows
RAX, RDX, RDI, ORIG_RAX = 80, 96, 112, 120  # places of registers in the user area
O_CREAT = os.O_CREAT
TRACEME, PEEKUSER, POKEUSER, CONT, SYSCALL, SETOPTIONS = 0, 3, 6, 7, 24, 0x4200
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # SYSGOOD, FORK, VFORK, CLONE, SECCOMP, EXITKILL
SECCOMP_STOP = signal.SIGTRAP | 7 << 8
WALL = 0x40000000  # __WALL: threads too
LONGEST = 300  # seconds of a run, each of which takes one or two where the machine is idle
UNABLE = "system calls are traced on Linux with x86-64 alone"

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Fault(NamedTuple):
    """What happens at the call number `at`, counted from 0 in a run.

    kind: "before" and "after" kill the process before or after that call; "moment" kills it after `at` thousandths of a
    second; the name of an errno, such as ENOSPC, refuses this call and all that follow it; "slow" lets each fsync take
    `at` thousandths of a second; "count" does nothing.
    """

    kind: str
    at: int = 0


class Ended(NamedTuple):
    """How a child ended: its status as of waitpid, the calls it made, what it printed on stderr, and whether it was
    killed because it had not ended after LONGEST seconds."""

    status: int
    calls: list[str]
    stderr: str
    hung: bool

    @property
    def code(self) -> int:
        """The exit code; minus the signal that killed the process."""
        return os.waitstatus_to_exitcode(self.status)


def able() -> bool:
    """Whether children can be traced on this machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def run(work: Callable[[], int], fault: Fault, stderr: Path) -> Ended:
    """Run a function in a forked child under a fault; its return value is the exit code. stderr: file of its output."""
    if not able():
        raise OSError(errno.ENOSYS, UNABLE)
    child = os.fork()
    if child == 0:
        _child(work, stderr)
    os.waitpid(child, 0)  # it stops before it begins
    _ptrace(SETOPTIONS, child, OPTIONS)
    _ptrace(CONT, child, 0)
    alarms = []

    def kill(*_: object) -> None:
        alarms.append(fault.kind)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, max(fault.at, 1) / 1000 if fault.kind == "moment" else LONGEST)
    try:
        status, calls = _follow(child, fault)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Ended(status, calls, stderr.read_text(errors="replace"), alarms not in ([], ["moment"]))


def _child(work: Callable[[], int], stderr: Path) -> None:
    code = 70
    try:
        output = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        filtered = _filter()
        _ptrace(TRACEME, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install(filtered)
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _filter() -> ctypes.Array[ctypes.c_char]:
    """The program of the filter: the number of the call, a comparison for each of CALLS, and two verdicts."""
    numbers = sorted(CALLS)
    program = struct.pack("<HBBI", 0x20, 0, 0, 0)  # load the call's number
    for place, number in enumerate(numbers):
        program += struct.pack("<HBBI", 0x15, len(numbers) - place, 0, number)  # equal: skip to the verdict TRACE
    program += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000) + struct.pack("<HBBI", 0x06, 0, 0, 0x7FF00000)
    return ctypes.create_string_buffer(program, len(program))


def _install(program: ctypes.Array[ctypes.c_char]) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    described = Program(len(program) // 8, ctypes.addressof(program))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(described), 0, 0):  # no new privileges; the filter
        raise OSError(ctypes.get_errno(), "the seccomp filter is refused")


def _ptrace(request: int, process: int, data: int, place: int = 0) -> int:
    ctypes.set_errno(0)
    value = libc.ptrace(request, process, place, data)
    if value == -1 and (error := ctypes.get_errno()):
        raise OSError(error, os.strerror(error))
    return value


def _follow(child: int, fault: Fault) -> tuple[int, list[str]]:
    """Answer the child's stops until it ends."""
    calls: list[str] = []
    ending: set[int] = set()  # threads in the call after which the child is killed
    while True:
        try:
            process, status = os.waitpid(-1, WALL)
        except InterruptedError:
            continue
        if not os.WIFSTOPPED(status):
            if process == child:
                return status, calls
            continue
        stop = status >> 8
        try:
            if stop == SECCOMP_STOP:
                how = _answer(process, child, fault, calls)
                if how == SYSCALL:
                    ending.add(process)
                _ptrace(how, process, 0)
            elif stop == signal.SIGTRAP | 0x80:  # a call was entered, or has returned
                if process in ending:
                    ending.discard(process)
                    if _peek(process, RAX) != -errno.ENOSYS:
                        os.kill(child, signal.SIGKILL)
                    else:
                        ending.add(process)
                _ptrace(SYSCALL if process in ending else CONT, process, 0)
            else:
                given = stop & 0xFF
                _ptrace(CONT, process, 0 if given in (signal.SIGTRAP, signal.SIGSTOP) else given)
        except ProcessLookupError:  # it was killed while it was stopped
            continue


def _peek(process: int, register: int) -> int:
    return _ptrace(PEEKUSER, process, 0, register)


def _answer(process: int, child: int, fault: Fault, calls: list[str]) -> int:
    """Do what the fault wants at a call, and return the request that lets the process go on."""
    name = CALLS[_peek(process, ORIG_RAX)]
    descriptor = _peek(process, RDI)
    if (name in ("write", "writev") and descriptor in (1, 2)) or (
        name == "openat" and not _peek(process, RDX) & O_CREAT
    ):
        return CONT
    number = len(calls)
    calls.append(name)
    if fault.kind == "slow" and name == "fsync":
        time.sleep(fault.at / 1000)
    if fault.kind in ("before", "after") and number == fault.at:
        if fault.kind == "after":
            return SYSCALL
        os.kill(child, signal.SIGKILL)
    if fault.kind.startswith("E") and number >= fault.at and name not in REMOVING:
        _ptrace(POKEUSER, process, -1, ORIG_RAX)  # the call is left out, and returns the error
        _ptrace(POKEUSER, process, -getattr(errno, fault.kind), RAX)
    return CONT

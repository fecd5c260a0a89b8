"""The parts of ptrace(2) that are needed to watch a command's system calls.

Used by ``balloonctl seccomp run`` and ``trace`` only; the daemon traces no process.
"""

import ctypes
import os
import struct
from dataclasses import dataclass

from balloon_daemon.linux.libc import LIBC, oserror

# linux/ptrace.h
PTRACE_TRACEME = 0
PTRACE_CONT = 7
PTRACE_SETOPTIONS = 0x4200
PTRACE_GETEVENTMSG = 0x4201
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_GET_SYSCALL_INFO = 0x420E

PTRACE_O_TRACEFORK = 1 << 1
PTRACE_O_TRACEVFORK = 1 << 2
PTRACE_O_TRACECLONE = 1 << 3
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_TRACEEXIT = 1 << 6
PTRACE_O_TRACESECCOMP = 1 << 7
PTRACE_O_EXITKILL = 1 << 20

PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_SECCOMP = 7

WALL = 0x40000000
"""__WALL: wait for threads and children of clone too. linux/wait.h"""

# linux/elf.h
_NT_PRSTATUS = 1
_NT_ARM_SYSTEM_CALL = 0x404

LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class _Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Call:
    """The system call that a stopped thread is in.

    Attributes:
        audit_arch: AUDIT_ARCH_* of the ABI that made it.
        number: the call's number as the filter sees it, unsigned.
        arguments: six unsigned 64-bit numbers.
    """

    audit_arch: int
    number: int
    arguments: tuple[int, ...]


def _ptrace(request: int, pid: int, address: int = 0, data: int | None = 0) -> int:
    result = LIBC.ptrace(request, pid, address, data)
    if result == -1:
        raise oserror("ptrace")
    return int(result)


def trace_me() -> None:
    """Lets the parent trace this process. Raises: OSError."""
    _ptrace(PTRACE_TRACEME, 0)


def set_options(pid: int, options: int) -> None:
    """Chooses the events that stop the thread. Raises: OSError."""
    _ptrace(PTRACE_SETOPTIONS, pid, 0, options)


def resume(pid: int, signal: int = 0) -> None:
    """Lets a stopped thread run on, with a signal if one is to be delivered. Raises: OSError."""
    _ptrace(PTRACE_CONT, pid, 0, signal)


def event_message(pid: int) -> int:
    """The event's message: the coming wait status, for PTRACE_EVENT_EXIT. Raises: OSError."""
    message = ctypes.c_ulong()
    _ptrace(PTRACE_GETEVENTMSG, pid, 0, ctypes.addressof(message))
    return message.value


def registers(pid: int, kind: int = _NT_PRSTATUS) -> bytes:
    """A stopped thread's registers, as struct user_regs_struct. Raises: OSError."""
    buffer = ctypes.create_string_buffer(1024)
    vector = _Iovec(ctypes.addressof(buffer), len(buffer))
    _ptrace(PTRACE_GETREGSET, pid, kind, ctypes.addressof(vector))
    return buffer.raw[: vector.len]


def set_registers(pid: int, values: bytes) -> None:
    """Sets a stopped thread's registers. Raises: OSError."""
    buffer = ctypes.create_string_buffer(values, len(values))
    vector = _Iovec(ctypes.addressof(buffer), len(values))
    _ptrace(PTRACE_SETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector))


def current_call(pid: int) -> Call:
    """The system call that a stopped thread is in, or was last in.

    The number is read from the registers: PTRACE_GET_SYSCALL_INFO gives it at system call stops
    only, and a thread that a filter kills stops at its exit. The ABI is given at every stop.

    Raises:
        OSError: the thread is gone, or not stopped.
    """
    # struct ptrace_syscall_info begins with op and three bytes of padding, so arch is at byte 4.
    info = ctypes.create_string_buffer(88)
    _ptrace(PTRACE_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
    (audit_arch,) = struct.unpack_from("=I", info, 4)
    values = registers(pid)
    if os.uname().machine == "aarch64":
        (number,) = struct.unpack("=I", registers(pid, _NT_ARM_SYSTEM_CALL))
        return Call(audit_arch, number, struct.unpack_from("=6Q", values))
    # The order of registers in asm/user_64.h: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx
    # rsi rdi orig_rax ...
    words = struct.unpack_from("=16Q", values)
    arguments = (words[14], words[13], words[12], words[7], words[9], words[8])
    return Call(audit_arch, words[15] & 0xFFFFFFFF, arguments)

"""Puts a traced program under a seccomp filter at its entry point, x86_64 only.

A policy for a program covers the calls of the program, not those of the dynamic loader before it.
So the filter is loaded when the program's own first instruction is about to run: the program
itself is made to call seccomp(2), by replacing its first bytes for a moment.
"""

import os
import signal
import struct

from balloon_daemon.ctl.seccomp import ptrace
from balloon_daemon.linux.seccomp import SECCOMP_SET_MODE_FILTER

_AT_ENTRY = 9  # linux/auxvec.h
_NR_SECCOMP = 317  # asm/unistd_64.h
_BREAKPOINT = b"\xcc"  # int3
_CALL_AND_BREAK = b"\x0f\x05\xcc"  # syscall; int3
_RED_ZONE_BYTES = 128

# The indices of the registers that this module sets or reads, in struct user_regs_struct of
# asm/user_64.h, which has 27 words.
_REGISTERS = struct.Struct("=27Q")
_RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP, _RSP = 10, 12, 13, 14, 15, 16, 19


class UnsupportedProgramError(Exception):
    """The traced program is no 64-bit x86 program."""


class EntryPoint:
    """The entry of a program that has just been executed, with a breakpoint on it."""

    def __init__(self, pid: int) -> None:
        """Finds the entry and puts the breakpoint. The thread is stopped at its exec event.

        Raises:
            UnsupportedProgramError: not a 64-bit x86 program.
            OSError: the program is gone.
        """
        if len(ptrace.registers(pid)) != _REGISTERS.size or os.uname().machine != "x86_64":
            raise UnsupportedProgramError(
                "only 64-bit x86 programs can be filtered at their entry"
            )
        with open(f"/proc/{pid}/auxv", "rb") as auxv:
            entries = dict(struct.iter_unpack("=QQ", auxv.read()))
        self._pid = pid
        self._address = entries[_AT_ENTRY]
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._original = os.pread(self._memory, len(_CALL_AND_BREAK), self._address)
        os.pwrite(self._memory, _BREAKPOINT, self._address)

    def close(self) -> None:
        """Closes the program's memory file."""
        os.close(self._memory)

    def reached(self) -> bool:
        """Whether the thread, stopped by SIGTRAP, is at the breakpoint."""
        words = _REGISTERS.unpack(ptrace.registers(self._pid))
        return bool(words[_RIP] == self._address + len(_BREAKPOINT))

    def load(self, bpf: bytes) -> None:
        """Makes the program load the filter, then restores its registers and code.

        Raises:
            OSError: the kernel refuses the filter, or the program died.
        """
        words = list(_REGISTERS.unpack(ptrace.registers(self._pid)))
        words[_RIP] = self._address
        words[_ORIG_RAX] = 2**64 - 1  # -1: in no system call, so the kernel restarts none
        before = tuple(words)
        # Write the filter into the traced program's stack, where memory below the stack pointer is
        # mapped and unused. Leave out the red zone, the 128 bytes under the stack pointer that a
        # function may use.
        program = (words[_RSP] - _RED_ZONE_BYTES - len(bpf) - 16) & ~15
        fprog = program + len(bpf)
        os.pwrite(self._memory, bpf + struct.pack("=H6xQ", len(bpf) // 8, program), program)
        os.pwrite(self._memory, _CALL_AND_BREAK, self._address)
        words[_RAX] = _NR_SECCOMP
        words[_RDI], words[_RSI], words[_RDX] = SECCOMP_SET_MODE_FILTER, 0, fprog
        ptrace.set_registers(self._pid, _REGISTERS.pack(*words))
        ptrace.resume(self._pid)
        _, status = os.waitpid(self._pid, ptrace.WALL)
        if not (os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP):
            raise ProcessLookupError("the program ended while its filter was being loaded")
        result = _REGISTERS.unpack(ptrace.registers(self._pid))[_RAX]
        os.pwrite(self._memory, self._original, self._address)
        ptrace.set_registers(self._pid, _REGISTERS.pack(*before))
        if result:
            errno = 2**64 - result
            raise OSError(errno, f"seccomp: {os.strerror(errno)}")

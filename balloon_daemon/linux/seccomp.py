"""Loads a seccomp filter that is already BPF, by seccomp(2) and without libseccomp.

libseccomp loads only filters that it has compiled itself, and its compiler cannot express every
policy (docs/policy-files.md). ``Program()`` does every allocation and lookup, before a fork;
``load`` is a single system call.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

from balloon_daemon.linux.libc import LIBC, oserror

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1

# linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38

# seccomp(2)'s number on each machine for which there is a table of system calls. asm/unistd.h
_NR_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}

_SOCK_FILTER_BYTES = 8


class _SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Program:
    """A filter program in the kernel's layout, ready to be loaded."""

    def __init__(self, bpf: bytes) -> None:
        """Copies the program. Args: an array of struct sock_filter."""
        self._instructions = ctypes.create_string_buffer(bpf, len(bpf))
        self._fprog = _SockFprog(
            len(bpf) // _SOCK_FILTER_BYTES, ctypes.addressof(self._instructions)
        )
        self._arguments = (
            ctypes.c_long(_NR_SECCOMP.get(os.uname().machine, -1)),
            ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
            ctypes.c_ulong(0),
            ctypes.byref(self._fprog),
        )

    def load(self) -> None:
        """Puts this thread under the filter for good; needs no_new_privs, or root.

        Raises:
            OSError: EACCES without no_new_privs, EINVAL for a program that the kernel refuses.
        """
        if LIBC.syscall(*self._arguments) != 0:
            raise oserror("seccomp")

    def load_and_exec(self, path: str, arguments: Sequence[str]) -> None:
        """Replaces this process by another program under the filter, which must allow the execve.

        No memory is allocated between load and execve: a filter without brk would kill Python for
        that.

        Raises:
            OSError: the kernel refuses the filter, or the program.
        """
        encoded = [os.fsencode(argument) for argument in arguments]
        argv = (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)
        program = ctypes.c_char_p(os.fsencode(path))
        execv = LIBC.execv
        self.load()
        execv(program, argv)
        err = oserror()
        err.filename = path
        raise err


# Parts for BPF instructions, which are (opcode, jump if true, jump if false, constant). The values
# are from linux/bpf_common.h and linux/seccomp.h.
_LD_W_ABS, _AND_K, _JEQ_K, _RET_K = 0x20, 0x54, 0x15, 0x06
_AT_NUMBER, _AT_ARCH, _AT_FIRST, _AT_THIRD, _AT_FLAGS = 0, 4, 16, 16 + 2 * 8, 16 + 3 * 8
_X86_64, _MMAP, _PRLIMIT64, _NOT_X32 = 0xC000003E, 9, 302, 0xBFFF_FFFF
_ALLOW, _NO_MEMORY, _NOT_PERMITTED = 0x7FFF0000, 0x00050000 | 12, 0x00050000 | 1

# asm-generic/mman-common.h, linux/mman.h
_MAP_TYPE, _MAP_PRIVATE, _MAP_GROWSDOWN, _MAP_HUGETLB = 0xF, 0x2, 0x100, 0x40000

COUNTED_MEMORY = Program(
    b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (_LD_W_ABS, 0, 0, _AT_ARCH),
            (_JEQ_K, 0, 5, _X86_64),
            (_LD_W_ABS, 0, 0, _AT_NUMBER),
            (_JEQ_K, 0, 3, _MMAP),
            (_LD_W_ABS, 0, 0, _AT_FLAGS),
            (_AND_K, 0, 0, _MAP_TYPE | _MAP_GROWSDOWN | _MAP_HUGETLB),
            (_JEQ_K, 0, 1, _MAP_PRIVATE),
            (_RET_K, 0, 0, _ALLOW),
            (_RET_K, 0, 0, _NO_MEMORY),
        )
    )
)
"""Makes mmap(2) of memory that RLIMIT_DATA does not count fail with ENOMEM, and allows all else.

crosvm's seccomp policy for this device checks the protection of a mapping, not its flags.
RLIMIT_DATA counts private mappings alone: neither shared nor droppable ones, nor stacks
(mm/internal.h, is_data_mapping()). RLIMIT_AS counts all of them, but its limit includes guest
memory: a device taken over by its guest could unmap that, and fill as much other memory as its
guest has. Nor may it have MAP_HUGETLB: it could empty a pool of huge pages, and the next page that
another VM's guest takes back from that pool would end its VMM by SIGBUS.
"""

OWN_LIMITS = Program(
    b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (_LD_W_ABS, 0, 0, _AT_ARCH),
            (_JEQ_K, 0, 9, _X86_64),
            (_LD_W_ABS, 0, 0, _AT_NUMBER),
            (_AND_K, 0, 0, _NOT_X32),
            (_JEQ_K, 0, 6, _PRLIMIT64),
            (_LD_W_ABS, 0, 0, _AT_FIRST),
            (_JEQ_K, 4, 0, 0),
            (_LD_W_ABS, 0, 0, _AT_THIRD),
            (_JEQ_K, 0, 3, 0),
            (_LD_W_ABS, 0, 0, _AT_THIRD + 4),
            (_JEQ_K, 0, 1, 0),
            (_RET_K, 0, 0, _ALLOW),
            (_RET_K, 0, 0, _NOT_PERMITTED),
        )
    )
)
"""Makes prlimit(2) fail with EPERM where it sets a limit and its process id is not 0 (0 stands for
the caller); allows all other calls.

A process may set limits of every process of its user, and with CAP_SYS_RESOURCE of all. The kernel
kills whoever has used up its RLIMIT_CPU. A service manager's filter cannot refuse this: the C
library calls prlimit64 for setrlimit(2) too.
"""


def set_no_new_privs() -> None:
    """Sets no_new_privs for good: execve grants no privileges any more. A filter needs this.

    Raises:
        OSError: the kernel's own refusal.
    """
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        raise oserror("prctl(PR_SET_NO_NEW_PRIVS)")

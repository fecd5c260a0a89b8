"""Checks and runs a seccomp program as the kernel does. Pure.

Written from the kernel's description of classic BPF alone; it shares no table and no code with
``seccomp.bpf``, so that a wrong opcode in one of the two shows.
Source: Documentation/networking/filter.rst, kernel/seccomp.c (seccomp_check_filter).
"""

import struct
from collections.abc import Sequence


class BadProgramError(Exception):
    """The kernel would refuse the program."""


class BpfMachine:
    """One program, checked once, run for any call."""

    def __init__(self, bpf: bytes) -> None:
        if len(bpf) % 8:
            raise BadProgramError("not an array of struct sock_filter")
        self.code = [struct.unpack_from("=HBBI", bpf, at) for at in range(0, len(bpf), 8)]
        if not 1 <= len(self.code) <= 4096:
            raise BadProgramError(f"{len(self.code)} instructions")
        for at, (op, yes, no, k) in enumerate(self.code):
            left = len(self.code) - at - 1
            match op:
                case 0x20:  # A = word at k of struct seccomp_data, which is 64 bytes long
                    sound = k % 4 == 0 and k < 64
                case 0x05:  # jump k
                    sound = k < left
                case 0x15 | 0x25 | 0x35 | 0x45:  # jump if A ==, >, >=, & k
                    sound = yes < left and no < left
                case 0x06 | 0x54:  # return k; A &= k
                    sound = True
                case _:
                    sound = False
            if not sound:
                raise BadProgramError(f"instruction {at}: {(op, yes, no, k)}")
        if self.code[-1][0] != 0x06:
            raise BadProgramError("does not end in a return")

    def run(self, arch: int, nr: int, args: Sequence[int] = ()) -> int:
        """The answer to one call."""
        return self.run_counted(arch, nr, args)[0]

    def run_counted(self, arch: int, nr: int, args: Sequence[int] = ()) -> tuple[int, int]:
        """The answer, and the number of instructions executed."""
        data = struct.pack("<IIQ6Q", nr, arch, 0x7F00DEADBEEF, *(tuple(args) + (0,) * 6)[:6])
        words = struct.unpack("<16I", data)
        a = at = count = 0
        while True:
            op, yes, no, k = self.code[at]
            at += 1
            count += 1
            if op == 0x15:
                at += yes if a == k else no
            elif op == 0x35:
                at += yes if a >= k else no
            elif op == 0x45:
                at += yes if a & k else no
            elif op == 0x25:
                at += yes if a > k else no
            elif op == 0x20:
                a = words[k >> 2]
            elif op == 0x06:
                return k, count
            elif op == 0x54:
                a &= k
            else:
                at += k

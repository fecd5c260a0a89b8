"""The tables of calls and constants, against what this machine, libseccomp and Python say."""

import errno
import fcntl
import mmap
import os
import re
import signal
import socket
from collections.abc import Iterator

import pyseccomp
import pytest

from balloon_daemon.ctl.seccomp.arches import TABLES, load_arch
from balloon_daemon.errors import StateError
from balloon_daemon.seccomp.constants import ARCH_NAMES, canonical_arch, parse_table
from balloon_daemon.seccomp.filter import NATIVE_ARCH, syscall_name


def python_constants() -> Iterator[tuple[str, int]]:
    """What Python was compiled with on this machine."""
    yield from ((name, number) for number, name in errno.errorcode.items())
    for module, families in [
        (mmap, r"(PROT|MAP|MADV)_\w+"),
        (signal, r"SIG(?!_|RT|CLD|POLL)[A-Z]+"),
        (socket, r"(AF|SO|SOL|IPPROTO|MSG|SHUT|SCM|PF|NETLINK)_\w+"),
        (fcntl, r"(F|FD|LOCK)_(?!OFD|[GS]ETLK)\w+"),
        (os, r"(O|EFD|SCHED|GRND|CLONE|MFD|F|P|RTLD|SEEK|PRIO|ST|W)_?[A-Z]\w*"),
    ]:
        for name in dir(module):
            number = getattr(module, name)
            if re.fullmatch(families, name) and isinstance(number, int):
                yield name, number


# libc's own numbers, not the kernel's: what is written in a policy is compared by the kernel.
LIBC_ONLY = {"O_LARGEFILE"}
# Python's or the resolver's own.
NOT_IN_HEADERS = re.compile(r"(P_|RTLD_|AF_SYSTEM|SO_USELOOPBACK|ST_|F_FULLFSYNC|F_NOCACHE).*")


@pytest.mark.skipif(NATIVE_ARCH not in ARCH_NAMES, reason="no table for this machine")
def test_constants_are_what_python_was_compiled_with() -> None:
    arch = load_arch(NATIVE_ARCH)
    checked, wrong = 0, {}
    for name, number in python_constants():
        known = arch.constant(name)
        if known is None or name in LIBC_ONLY:
            continue
        checked += 1
        if known != number % 2**64:
            wrong[name] = (known, number)
    assert wrong == {}
    assert checked > 400


@pytest.mark.parametrize("arch", ARCH_NAMES)
def test_calls_have_libseccomps_numbers(arch: str) -> None:
    theirs = {
        "x86_64": pyseccomp.Arch.X86_64,
        "aarch64": pyseccomp.Arch.AARCH64,
        "riscv64": pyseccomp.Arch.RISCV64,
    }[arch]
    calls = load_arch(arch).calls
    resolved = {name: pyseccomp.resolve_syscall(theirs, name) for name in calls}
    assert {n: (calls[n], nr) for n, nr in resolved.items() if nr >= 0 and nr != calls[n]} == {}
    # Unknown to libseccomp are only calls younger than it.
    assert sum(nr >= 0 for nr in resolved.values()) > 0.9 * len(calls) - 20


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("MADV_REMOVE", 9, 9),
        ("O_DIRECT", 0o40000, 0o200000),
        ("O_DIRECTORY", 0o200000, 0o40000),
        ("O_NOFOLLOW", 0o400000, 0o100000),
        ("O_LARGEFILE", 0o100000, 0o400000),
        ("MAP_32BIT", 0x40, None),
        ("PROT_BTI", None, 0x10),
        ("ARCH_SET_FS", 0x1002, None),
        ("SIGSYS", 31, 31),
        ("EDEADLOCK", 35, 35),
        ("KVM_RUN", 0xAE80, 0xAE80),
        ("AT_FDCWD", 2**64 - 100, 2**64 - 100),
        ("FUTEX_WAITERS", 0x80000000, 0x80000000),
        ("CLONE_CLEAR_SIGHAND", 1 << 32, 1 << 32),
        ("PR_SET_NAME", 15, 15),
        ("TIOCSTI", 0x5412, 0x5412),
        ("UFFDIO_API", 0xC018AA3F, 0xC018AA3F),
        ("no_such", None, None),
        ("", None, None),
        ("arch x86_64", None, None),
    ],
)
def test_constant_is_the_architectures_own(
    name: str, x86_64: int | None, aarch64: int | None
) -> None:
    assert load_arch("x86_64").constant(name) == x86_64
    assert load_arch("aarch64").constant(name) == aarch64


def test_every_constant_of_the_tables_is_found_by_its_name() -> None:
    for name in ARCH_NAMES:
        arch = load_arch(name)
        lines = TABLES[name].read_text().split("\nconstants ")[1].splitlines()[1:]
        table = {line.split()[0]: int(line.split()[1]) for line in lines}
        assert arch.constant_names() == list(table)
        assert all(arch.constant(n) == v < 2**64 for n, v in table.items())


def test_tables_say_when_and_from_what_they_were_made() -> None:
    for name in ARCH_NAMES:
        assert re.search(r"on 20\d\d-\d\d-\d\d from Linux \d+\.\d+", load_arch(name).origin)


def test_syscall_name_is_told_by_number() -> None:
    assert [syscall_name(nr) for nr in (0, 28, 9999)] == ["read", "madvise", "call 9999"]
    aarch64 = load_arch("arm64")
    assert [aarch64.call_name(nr) for nr in (63, 233, 9999)] == ["read", "madvise", None]


def test_other_names_of_an_architecture_are_known() -> None:
    assert [canonical_arch(n) for n in ("arm64", "amd64", "x86_64", "sparc")] == [
        "aarch64",
        "x86_64",
        "x86_64",
        "sparc",
    ]


def test_architecture_without_a_table_is_refused() -> None:
    with pytest.raises(StateError, match="no table of system calls for sparc"):
        load_arch("sparc")


@pytest.mark.parametrize(
    "text", ["", "# x\narch a 0x1\ncalls 2\nread 0\nconstants 0\n", "arch a\n", "# only\n"]
)
def test_table_that_was_not_made_by_the_script_is_refused(text: str) -> None:
    with pytest.raises(StateError):
        parse_table(text)

"""Filters loaded for real: what the kernel lets through, refuses, and kills.

Each case runs in a forked child that does nothing but the one thing and ``_exit``; the parent
reads its fate from the wait status.
"""

import ctypes
import errno
import mmap
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.errors import StateError
from balloon_daemon.linux.seccomp import set_no_new_privs
from balloon_daemon.seccomp.filter import NATIVE_ARCH, CompiledFilter, compile_policy

POLICY = Path(__file__).parents[2] / "policies" / "balloon_device.policy"
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
EXIT = {"x86_64": 231, "aarch64": 94}[NATIVE_ARCH]

pytestmark = pytest.mark.skipif(
    NATIVE_ARCH not in ("x86_64", "aarch64"), reason="no table of calls for this machine"
)
x86_64_only = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="another ABI of x86_64: there is none here"
)


def fate(compiled: CompiledFilter, action: Callable[[], int]) -> int:
    """Runs action under the filter. Returns its result, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            set_no_new_privs()
            compiled.load()
            status = action()
        finally:
            # exit_group itself: os._exit would do, but the status must fit one byte either way.
            LIBC.syscall(EXIT, status & 0xFF)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def compiled(tmp_path: Path, text: str) -> CompiledFilter:
    path = tmp_path / "test.policy"
    path.write_text(text)
    return compile_policy(path, arch=load_arch(NATIVE_ARCH))


def call(number: int, *args: int) -> int:
    return int(LIBC.syscall(number, *(ctypes.c_ulong(a % 2**64) for a in args)))


def test_load_balloon_policy_and_live() -> None:
    assert fate(compile_policy(POLICY), lambda: os.getpid() and 7) == 7


def test_load_balloon_policy_open_is_killed() -> None:
    def action() -> int:
        os.open("/dev/null", os.O_RDONLY)
        return 0

    assert fate(compile_policy(POLICY), action) == -signal.SIGSYS


def test_load_balloon_policy_mmap_exec_is_killed_and_plain_mmap_lives() -> None:
    policy = compile_policy(POLICY)

    def map_with(prot: int) -> Callable[[], int]:
        return lambda: len(mmap.mmap(-1, 4096, prot=prot)) // 4096

    # mmap.mmap asks for nothing but mmap itself when it is given no file.
    assert fate(policy, map_with(mmap.PROT_READ | mmap.PROT_WRITE)) == 1
    assert fate(policy, map_with(mmap.PROT_READ | mmap.PROT_EXEC)) == -signal.SIGSYS


def test_load_errno_filter_fails_the_call_with_it(tmp_path: Path) -> None:
    policy = compiled(tmp_path, "@default trap\nexit_group: 1\ngetppid: return ENOTNAM\n")

    def action() -> int:
        nr = {"x86_64": 110, "aarch64": 173}[NATIVE_ARCH]
        return ctypes.get_errno() if LIBC.syscall(nr) == -1 else 0

    assert fate(policy, action) == errno.ENOTNAM


def test_load_ordered_list_decides_by_the_first_match(tmp_path: Path) -> None:
    policy = compiled(
        tmp_path,
        "exit_group: 1\n"
        "dup: { arg0 == 77; return EPERM, arg0 & 64; return EIO, arg0 > 1; kill, allow }\n",
    )
    dup = {"x86_64": 32, "aarch64": 23}[NATIVE_ARCH]

    def error_of(fd: int) -> Callable[[], int]:
        return lambda: ctypes.get_errno() if call(dup, fd) == -1 else 0

    assert fate(policy, error_of(77)) == errno.EPERM
    assert fate(policy, error_of(65)) == errno.EIO
    assert fate(policy, error_of(5)) == -signal.SIGSYS
    assert fate(policy, error_of(1)) == 0


@pytest.mark.parametrize("default", ["kill-process", "kill-thread", "trap"])
def test_load_default_action_is_the_files(tmp_path: Path, default: str) -> None:
    policy = compiled(tmp_path, f"@default {default}\nexit_group: 1\n")
    assert fate(policy, lambda: os.getpid() and 7) == -signal.SIGSYS


def test_load_without_privileges_or_no_new_privs_is_refused(tmp_path: Path) -> None:
    policy = compiled(tmp_path, "exit_group: 1\n")
    child = os.fork()
    if child == 0:
        status = 99
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            policy.load()
        except OSError as err:
            status = err.errno or 98
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == errno.EACCES


def test_load_filter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.policy"
    path.write_text("read: 1\n")
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[NATIVE_ARCH]
    with pytest.raises(StateError, match=other):
        compile_policy(path, arch=load_arch(other)).load()


# --- calls by another ABI of the same machine -----------------------------------------------

ALLOW_ALL_NUMBERS = "@denylist\nreboot: return EPERM\n"


@x86_64_only
def test_load_x32_call_is_killed_though_its_number_is_allowed(tmp_path: Path) -> None:
    # A denylist allows every number that it does not name: only the ABI is left to refuse.
    policy = compiled(tmp_path, ALLOW_ALL_NUMBERS)
    assert fate(policy, lambda: call(39) and 7) == 7  # getpid
    assert fate(policy, lambda: call(0x40000000 | 39) and 7) == -signal.SIGSYS


@x86_64_only
def test_load_i386_call_is_killed_though_its_number_is_allowed(tmp_path: Path) -> None:
    # mov eax, 20 (i386's getpid); int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    getpid_by_i386 = ctypes.CFUNCTYPE(ctypes.c_int)(address)
    if fate_without_filter(getpid_by_i386) != 7:
        pytest.skip("this kernel runs no i386 calls, so there are none to kill")
    policy = compiled(tmp_path, ALLOW_ALL_NUMBERS)
    assert fate(policy, lambda: getpid_by_i386() and 7) == -signal.SIGSYS


def fate_without_filter(action: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(7 if action() == os.getpid() else 8)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

"""``balloond --check``'s trial: a real device does its work on this host, or why it cannot."""

import ctypes
import mmap
import os
import platform
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from balloon_daemon.cli import trial
from balloon_daemon.device import rehearsal
from balloon_daemon.errors import TrialError
from balloon_daemon.linux import cpython
from balloon_daemon.seccomp.filter import compile_policy
from tests.fakes.forked_here import ForkedHere
from tests.harness.daemon import BALLOOND
from tests.harness.device_rig import SHIPPED_POLICY, ready_to_fork, shipped_filter, unprivileged
from tests.harness.faults import fault
from tests.harness.other_user import AS_NOBODY
from tests.harness.short_host import fd_numbers, limit_for_room, limited
from tests.harness.waiting import HANG_S, wait_until

LIBC = ctypes.CDLL(None)
UNNAMED = "the kernel's log does not name here"
SYS_CLOCK_GETTIME = 228  # arch/x86/entry/syscalls/syscall_64.tbl


def check(tmp_path: Path, *args: str, launcher: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Runs ``balloond --check``. Returns its status and what it wrote to its two outputs."""
    if "setpriv" in launcher:
        # A directory that others may write would be warned of.
        os.chown(tmp_path, 65534, 65534)
    command = [*launcher, str(BALLOOND), "--check", "--socket", str(tmp_path / "s"), *args]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    return run.returncode, run.stdout, run.stderr


def env(setting: str) -> tuple[str, ...]:
    """A launcher that sets this in the environment."""
    return ("env", setting)


def complaint_of(load_filter: Callable[[], None]) -> str:
    """What is said of a trial whose device loads its filter so. Nothing of the trial is left."""
    before, children = fd_numbers(os.getpid()), psutil.Process().children()
    with ready_to_fork(), pytest.raises(TrialError) as caught:
        trial.try_device(unprivileged(), ForkedHere(load_filter))
    assert fd_numbers(os.getpid()) == before
    assert psutil.Process().children() == children
    assert "\n" not in str(caught.value)
    return str(caught.value)


def policy_with(tmp_path: Path, call: str, rule: str) -> Path:
    """The shipped policy with another line for one call, or none."""
    lines = SHIPPED_POLICY.read_text().splitlines(keepends=True)
    path = tmp_path / "other.policy"
    path.write_text("".join(line for line in lines if not line.startswith(f"{call}:")) + rule)
    return path


# --- this host --------------------------------------------------------------------------------

TRIAL_LINE = re.compile(
    r"^trial +a jailed device was ready after \d+\.\d ms and gave 2 MiB back in \d+\.\d ms$",
    re.MULTILINE,
)


def test_check_has_a_device_give_memory_back(tmp_path: Path) -> None:
    status, out, err = check(tmp_path)

    assert (status, err) == (0, "")
    assert TRIAL_LINE.search(out)


def test_check_of_an_ordinary_user_has_a_device_give_memory_back(tmp_path: Path) -> None:
    # It still must be able to read this checkout, wherever it is.
    caps = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")
    as_nobody = ("setpriv", *AS_NOBODY, *caps) if os.geteuid() == 0 else ()

    status, out, err = check(tmp_path, launcher=as_nobody)

    assert (status, err) == (0, "")
    assert "runs as the user who starts balloond (not root)" in out
    assert TRIAL_LINE.search(out)


def test_start_of_the_daemon_does_not_load_the_trial() -> None:
    code = (
        "import sys, balloon_daemon.cli.run; sys.exit('balloon_daemon.cli.trial' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_S).returncode == 0


# --- policies that no device can live under ---------------------------------------------------


@fault("policy file of one's own that lacks a call, or refuses one")
@pytest.mark.parametrize("call", ["madvise", "epoll_wait", "epoll_ctl", "read", "recvfrom"])
def test_check_with_a_policy_that_lacks_a_call_one_line_status_1(
    call: str, tmp_path: Path, kernel_log_is_complete: bool
) -> None:
    policy = policy_with(tmp_path, call, "")
    runs: list[tuple[int, str, str]] = []

    def named() -> bool:
        runs.append(check(tmp_path, "--policy", str(policy)))
        return not kernel_log_is_complete or UNNAMED not in runs[-1][2]

    # It waits a moment for the kernel's record; a busy kernel may write it later.
    wait_until(named, what="the kernel's record comes in time")

    status, out, err = runs[-1]
    assert (status, out) == (1, "")
    assert err.startswith("balloond: a trial device was killed by its seccomp policy for ")
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()
    told = f"{call}(); allow it in the policy file\n"
    # Where its rate is limited, the record of this very kill may be there or not.
    assert err.endswith(told) or (not kernel_log_is_complete and UNNAMED in err)


@fault("policy file of one's own that lacks a call, or refuses one")
def test_policy_that_refuses_to_free_memory_is_told_by_the_kernels_error(tmp_path: Path) -> None:
    load = compile_policy(policy_with(tmp_path, "madvise", "madvise: return EPERM\n")).load

    assert complaint_of(load) == (
        "the kernel did not free the memory that a trial device gave back: Operation not permitted"
    )


@fault("policy file of one's own that lacks a call, or refuses one")
def test_policy_that_frees_nothing_and_says_it_did_is_found_out(tmp_path: Path) -> None:
    load = compile_policy(policy_with(tmp_path, "madvise", "madvise: return 0\n")).load

    assert complaint_of(load).endswith("gave back: it said nothing of an error")


# --- a clock that only a system call can read --------------------------------------------------


def ask_the_kernel_for_the_time(load_filter: Callable[[], None]) -> None:
    """What clock_gettime(3) does where the vDSO does not serve the clock source."""
    load_filter()
    LIBC.syscall(SYS_CLOCK_GETTIME, 1, ctypes.create_string_buffer(16))


@fault("clock that the vDSO does not serve (`hpet`, `acpi_pm`)")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hpet", "the clock source is hpet, which the vDSO does not serve; use tsc or kvm-clock"),
        ("tsc", "the vDSO does not serve the clock, though its source is tsc"),
    ],
)
def test_clock_without_vdso_is_named_with_its_source(
    source: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel_log_is_complete: bool,
) -> None:
    (tmp_path / "clock").write_text(f"{source}\n")
    monkeypatch.setattr(trial, "CLOCK_SOURCE", tmp_path / "clock")
    # A busy kernel may write its record late.
    monkeypatch.setattr(trial, "NAME_WITHIN_S", 5.0 if kernel_log_is_complete else 0.5)

    complaint = complaint_of(partial(ask_the_kernel_for_the_time, shipped_filter().load))

    assert complaint.startswith("a trial device was killed by its seccomp policy for ")
    if UNNAMED in complaint:
        assert not kernel_log_is_complete
        assert ("perhaps clock_gettime()" in complaint) == (source == "hpet")
    else:
        assert complaint.endswith(
            f" for clock_gettime(): {said}, or allow the call in the policy file"
        )


# --- Pythons that ask the kernel for more as they live -------------------------------------------


def use_up(what: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a rehearsal of one step."""
    monkeypatch.setattr(rehearsal, "_STEPS", ((what, call),))


def hint_huge_pages() -> None:
    memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)


@fault("a Python or a C library that devices die of later in life")
def test_device_that_dies_of_its_python_in_later_life_is_told_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, kernel_log_is_complete: bool
) -> None:
    use_up("50,000 new objects", hint_huge_pages, monkeypatch)

    complaint = complaint_of(shipped_filter().load)

    version = platform.python_version()
    remedy = f"run balloond with another Python than {version}, or allow it in the policy file"
    killed = "a trial device was killed by its seccomp policy for"
    told = f"{killed} madvise() at 50,000 new objects; {remedy}"
    untold = f"{killed} a system call that {UNNAMED} at 50,000 new objects; {remedy}"
    assert complaint in {told, untold}


@fault("a Python or a C library that devices die of later in life")
def test_device_that_crashes_in_later_life_is_told_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_up("calls", lambda: ctypes.string_at(0), monkeypatch)

    complaint = complaint_of(shipped_filter().load)

    assert complaint.startswith(
        "a trial device was killed by signal 11 (Segmentation fault) at calls; run balloond with "
    )


def test_device_that_fails_in_later_life_is_told_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_up("blocks", lambda: bytearray(1 << 40), monkeypatch)

    assert (
        complaint_of(shipped_filter().load) == "a trial device ended with status 70: MemoryError"
    )


def test_device_that_does_not_come_to_an_end_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The policy has poll and no select.
    use_up("errors", select.poll().poll, monkeypatch)
    monkeypatch.setattr(trial, "WITHIN_S", 0.5)

    assert complaint_of(shipped_filter().load).endswith("s; is the machine overloaded?")


@fault("a Python or a C library that devices die of later in life")
def test_device_left_to_a_python_that_hints_huge_pages_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_as_it_is(function: Callable[[], NoReturn]) -> NoReturn:
        function()

    monkeypatch.setattr(cpython, "run_without_new_arenas", run_as_it_is)
    if sys.version_info < (3, 15):
        with ready_to_fork():
            trial.try_device(unprivileged(), ForkedHere(shipped_filter().load))
    elif sys.version_info < (3, 16):
        # Whichever part of the trial makes the first arena: it was 50,000 new objects in a release
        # candidate, and deep calls in 3.15.0.
        killed = "a trial device was killed by its seccomp policy for madvise() at "
        assert complaint_of(shipped_filter().load).startswith(killed)


@fault("a Python or a C library that devices die of later in life")
@pytest.mark.parametrize(
    "setting",
    [
        "PYTHONMALLOC=debug",
        "PYTHONMALLOC=malloc",
        "PYTHONTRACEMALLOC=5",
        "PYTHON_LAZY_IMPORTS=all",
        # Devices would die of these two if they had balloond's environment.
        "PYTHON_JIT=1",
        "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
    ],
)
def test_check_under_a_setting_that_devices_lack_is_well(setting: str, tmp_path: Path) -> None:
    status, out, err = check(tmp_path, launcher=env(setting))

    assert (status, err) == (0, "")
    assert TRIAL_LINE.search(out)


# --- devices that fail otherwise ---------------------------------------------------------------


@fault("a device cannot be made, hangs, is killed, fails")
def test_device_that_hangs_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "WITHIN_S", 0.5)

    complaint = complaint_of(lambda: select.select([], [], []) and None)

    assert complaint.startswith("a trial device was not ready within ")


def test_device_that_is_killed_is_told_with_its_signal() -> None:
    complaint = complaint_of(lambda: os.kill(os.getpid(), signal.SIGKILL))

    assert complaint == "a trial device was killed by signal 9 (Killed)"


@fault("a device cannot be made, hangs, is killed, fails")
def test_device_that_raises_is_told_with_its_error() -> None:
    def refused() -> None:
        raise OSError(22, "seccomp is not in this kernel")

    assert complaint_of(refused) == (
        "a trial device ended with status 70: OSError: [Errno 22] seccomp is not in this kernel"
    )


@fault("a device cannot be made, hangs, is killed, fails")
def test_no_descriptors_for_a_trial_is_told() -> None:
    def never() -> None:
        raise AssertionError("no device can have been forked")

    pid = os.getpid()
    with (
        ready_to_fork(),
        limited(pid, resource.RLIMIT_NOFILE, limit_for_room(fd_numbers(pid), 4)),
        pytest.raises(TrialError, match="trial device cannot be made: Too many open files"),
    ):
        trial.try_device(unprivileged(), ForkedHere(never))

"""Where low memory comes from: a whole balloond on hosts whose figures a good guess gets wrong."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, run, step
from balloon_daemon.units import MIB
from tests.harness.daemon import BALLOOND, Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MARGIN_MIB, MAXIMUM, SPEED, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.memory_cgroup import MemoryCgroup, memory_cgroup
from tests.harness.other_user import AS_NOBODY
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, facts

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, for a /proc of its own or another user"
)

FULL_SPEED = "200"
"""A release takes 0.15 s then, so that all is returned within 3 s."""


class OwnFigures(DaemonConfig):
    """A balloond that finds its figures by itself."""

    def command(self) -> list[str]:
        command = super().command()
        place = command.index("--low-mem-dir")
        return command[:place] + command[place + 2 :]


@pytest.fixture
def start_on_own_figures(tmp_path: Path, low_mem: LowMemDir) -> Iterator[StartDaemon]:
    """Starts a daemon that finds its figures by itself, with options and by a launcher."""
    daemons: list[Daemon] = []

    def start(*options: str, launcher: tuple[str, ...] = ()) -> Daemon:
        config = OwnFigures(tmp_path / "own.sock", VM_MEM_MIB, low_mem, SPEED, options)
        daemons.append(Daemon(config, tmp_path / f"own-{len(daemons)}", launcher))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


def check(
    *options: str, launcher: tuple[str, ...] = (), socket: Path
) -> "subprocess.CompletedProcess[str]":
    command = [*launcher, str(BALLOOND), "--check", "--socket", str(socket), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def balloon_bytes(guest: FakeGuest) -> int:
    return guest.driver.actual * 4096


def fill(guest: FakeGuest, low_mem: LowMemDir) -> None:
    low_mem.set_low()
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)


def set_margin(low_mem: LowMemDir, content: str) -> None:
    new = low_mem.path / "margin.new"
    new.write_text(content)
    os.replace(new, low_mem.path / "margin")


def until(guest: FakeGuest, condition: Callable[[], bool]) -> None:
    """Lets the guest run until a condition holds, for as long as only a hang takes."""
    run([guest], condition, deadline_s=60)


def until_logged(guest: FakeGuest, daemon: Daemon, text: str) -> None:
    until(guest, lambda: any(text in record["message"] for record in daemon.records()))


def of_source(daemon: Daemon) -> list[str]:
    """The events of the low-memory source, by their words."""
    return [r["event"] for r in daemon.records() if r["event"].startswith("source-")]


# --- a notifier that is switched off ---


@fault("low-memory notifier switched off (`off` in `margin`), and on again")
@pytest.mark.parametrize("available", ["1048576\n", "0\n", "much\n", None])
def test_margin_switched_off_gives_a_full_balloon_back_whatever_is_available(
    available: str | None, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    fill(guest, low_mem)

    set_margin(low_mem, "off\n")
    if available is None:
        (low_mem.path / "available").unlink()
    else:
        low_mem.set_content(available)
    # Past the end of the way down too: nothing is ever taken again.
    until(guest, lambda: daemon.decision()["reason"] == "all-returned")
    until(guest, lambda: balloon_bytes(guest) == 0)

    steps = [r for r in daemon.records() if r.get("reason") == "switched-off"]
    assert daemon.decision()["reason"] == "all-returned"
    assert steps != []
    assert of_source(daemon) == ["source-off"]
    assert facts(daemon, "source-off")[0]["why"] == f"{low_mem.path}/margin says off"


@fault("low-memory notifier switched off (`off` in `margin`), and on again")
def test_margin_switched_off_and_on_again_takes_again(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    set_margin(low_mem, "off")
    low_mem.set_low()
    until(guest, lambda: facts(daemon, "source-off") != [])

    set_margin(low_mem, f"{MARGIN_MIB} 3200 \n")
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)

    assert of_source(daemon) == ["source-off", "source-on"]
    assert facts(daemon, "source-on")[0]["margin_mib"] == MARGIN_MIB
    taken = [r for r in daemon.records() if r.get("reason") == "low-memory"]
    assert [r["margin_mib"] for r in taken] == [MARGIN_MIB] * 16


@fault("low-memory notifier switched off (`off` in `margin`), and on again")
def test_margin_switched_off_is_overruled_by_one_that_was_given(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    set_margin(low_mem, "off\n")
    daemon = start_daemon("--margin", "300M")
    guest = attach(make_guest(), daemon)

    low_mem.set_available(299)
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)

    assert of_source(daemon) == []


@fault("a second cause while the figures are unknown")
def test_two_causes_that_alternate_do_not_fill_the_log(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    broken = [("much\n", "holds b'much"), ("", "is empty")]
    for content, complaint in broken:
        low_mem.set_content(content)
        until_logged(guest, daemon, complaint)

    # A reading comes every 5 ms: most turns are seen.
    for content, _ in broken * 50:
        low_mem.set_content(content)
        step([guest], 0.01)
    (low_mem.path / "available").unlink()
    until_logged(guest, daemon, "No such file or directory")

    assert of_source(daemon) == ["source-unknown"] * 3


# --- pools of huge pages ---

# The figures of a public report, scaled: 64 GiB with 60 GiB in a pool, and 2.5 GiB available.
POOL = {
    "MemTotal": f"{64 << 20} kB",
    "MemFree": f"{2 << 20} kB",
    "MemAvailable": f"{5 << 19} kB",
    "HugePages_Total": "30720",
    "HugePages_Free": "720",
    "HugePages_Rsvd": "0",
    "HugePages_Surp": "0",
    "Hugepagesize": "2048 kB",
    "Hugetlb": f"{60 << 20} kB",
}
NO_POOL = {"HugePages_Total": "0", "HugePages_Free": "0", "Hugetlb": "0 kB"}


class Meminfo:
    """A /proc/meminfo of one daemon's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, changes: dict[str, str | None]) -> None:
        # In its place: what is mounted is this very file.
        lines = POOL | changes
        with self.path.open("r+" if self.path.exists() else "w") as file:
            file.write(
                "".join(f"{name + ':':<16}{text:>12}\n" for name, text in lines.items() if text)
            )
            file.truncate()

    def launcher(self) -> tuple[str, ...]:
        """Starts a command that sees it, and no free pages in per-CPU lists."""
        mounts = f"mount --bind {self.path} /proc/meminfo && mount --bind /dev/null /proc/zoneinfo"
        return ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")


@pytest.fixture
def meminfo(tmp_path: Path) -> Meminfo:
    meminfo = Meminfo(tmp_path / "meminfo")
    meminfo.say({})
    return meminfo


@fault("most of the host's memory is in pools of huge pages")
@needs_root
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Hugetlb": None},
        {"HugePages_Total": "60", "Hugepagesize": f"{1 << 20} kB"},
        {"HugePages_Total": "0"},
    ],
    ids=["2 MiB", "before 4.16", "1 GiB", "not the default size"],
)
def test_host_with_most_of_its_memory_in_a_pool_is_not_low(
    changes: dict[str, str | None],
    meminfo: Meminfo,
    start_on_own_figures: StartDaemon,
    make_guest: MakeGuest,
) -> None:
    meminfo.say(changes)
    daemon = start_on_own_figures("--speed", "1000", launcher=meminfo.launcher())
    guest = attach(make_guest(), daemon)

    until(guest, lambda: facts(daemon, "device-ready") != [])
    # A poll comes each millisecond; low memory makes it a decision.
    meminfo.say({"MemAvailable": f"{100 << 10} kB", **changes})
    until(guest, lambda: balloon_bytes(guest) > 0)

    first = next(r for r in daemon.records() if r["event"] == "decided")
    assert (first["available_mib"], first["margin_mib"]) == (100, 4096 * 52 // 1000)


@fault("most of the host's memory is in pools of huge pages")
@needs_root
@pytest.mark.parametrize(
    "changes",
    [NO_POOL, {"HugePages_Surp": "30720"}],
    ids=["freed", "surplus"],
)
def test_host_whose_pool_becomes_ordinary_memory_is_low_then(
    changes: dict[str, str | None],
    meminfo: Meminfo,
    start_on_own_figures: StartDaemon,
    make_guest: MakeGuest,
) -> None:
    daemon = start_on_own_figures(launcher=meminfo.launcher())
    guest = attach(make_guest(), daemon)
    until(guest, lambda: facts(daemon, "device-ready") != [])
    assert daemon.decision()["reason"] is None

    meminfo.say(changes)
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)

    assert daemon.decision()["margin_mib"] == 65536 * 52 // 1000


@fault("most of the host's memory is in pools of huge pages")
@needs_root
def test_margin_of_all_that_is_not_in_the_pool_is_refused(
    meminfo: Meminfo, tmp_path: Path
) -> None:
    def ask(margin: str) -> "subprocess.CompletedProcess[str]":
        return check("--margin", margin, launcher=meminfo.launcher(), socket=tmp_path / "s")

    refused, taken = ask("4G"), ask("4095M")

    assert refused.returncode == 2
    assert refused.stderr == (
        "balloond: a margin of 4 GiB on a host of 64 GiB, of which 60 GiB can never be available, "
        "would always be low memory; give a smaller one\n"
    )
    assert taken.returncode == 0, taken.stderr


# --- no figures ---


def low_mem_dir(path: Path, available: str | None, margin: str | None) -> Path:
    for name, content in (("available", available), ("margin", margin)):
        if content is not None:
            (path / name).write_text(content)
    return path


@fault("no figures at all")
@pytest.mark.parametrize(
    ("available", "margin", "complaint"),
    [
        ("900\n", "much\n", "the margin is unknown: {}/margin holds b'much'"),
        ("900\n", "", "the margin is unknown: {}/margin is empty"),
        ("900\n", "on\n", "the margin is unknown: {}/margin holds b'on'"),
        ("900\n", None, "the margin is unknown: {}/margin: No such file or directory"),
        ("much\n", "400\n", "available memory is unknown: {}/available holds b'much'"),
        ("", "400\n", "available memory is unknown: {}/available is empty"),
        (None, "400\n", "available memory is unknown: {}/available: No such file or directory"),
        (None, None, "available memory is unknown: {}/available: No such file or directory"),
    ],
)
def test_check_without_figures_is_one_line_status_1(
    available: str | None, margin: str | None, complaint: str, tmp_path: Path
) -> None:
    directory = low_mem_dir(tmp_path, available, margin)

    done = check("--low-mem-dir", str(directory), socket=tmp_path / "s")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"balloond: low memory cannot be seen, as {complaint.format(directory)}"
    )
    assert "; let it hold a whole number of MiB" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("margin", "options", "said"),
    [
        ("off\n", (), "now switched off, so that nothing is low"),
        ("much\n", ("--margin", "1G"), "900 MiB available, margin 1,024 MiB, low"),
        (None, ("--margin", "1G"), "900 MiB available, margin 1,024 MiB, low"),
        ("off\n", ("--margin", "1G"), "900 MiB available, margin 1,024 MiB, low"),
    ],
)
def test_check_without_a_margin_that_matters_is_fine(
    margin: str | None, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    directory = low_mem_dir(tmp_path, "900\n", margin)

    done = check("--low-mem-dir", str(directory), *options, socket=tmp_path / "s")

    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.fixture
def nobodys(low_mem: LowMemDir) -> Iterator[Path]:
    """A directory of nobody's with low-memory files of root's."""
    with tempfile.TemporaryDirectory(prefix="balloond-test-") as name:
        shutil.copytree(low_mem.path, name, dirs_exist_ok=True)
        os.chmod(name, 0o711)  # Others could list another one, which balloond warns of.
        os.chown(name, 65534, 65534)
        yield Path(name)


@fault("no figures at all")
@needs_root
@pytest.mark.parametrize(
    ("name", "blamed"), [("available", "available memory"), ("margin", "the margin")]
)
def test_check_by_whom_a_file_is_kept_from_is_status_1(
    name: str, blamed: str, nobodys: Path
) -> None:
    as_nobody = ("setpriv", *AS_NOBODY)
    if subprocess.run([*as_nobody, str(BALLOOND), "--version"], capture_output=True).returncode:
        pytest.skip("needs a checkout that others may read")
    (nobodys / name).chmod(0o600)

    done = check("--low-mem-dir", str(nobodys), launcher=as_nobody, socket=nobodys / "s")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"balloond: low memory cannot be seen, as {blamed} is unknown: "
        f"{nobodys}/{name}: Permission denied; let it hold a whole number of MiB"
    )
    assert done.stderr.count("\n") == 1


@fault("no figures at all")
@needs_root
def test_check_without_proc_meminfo_is_status_1_and_the_daemon_goes_on(
    tmp_path: Path, start_on_own_figures: StartDaemon, make_guest: MakeGuest
) -> None:
    # What a service's ProcSubset=pid makes.
    script = 'mount -t proc -o subset=pid none /proc && exec "$@"'
    launcher = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")

    done = check(launcher=launcher, socket=tmp_path / "s")
    daemon = start_on_own_figures(launcher=launcher)
    guest = attach(make_guest(), daemon)
    until_logged(guest, daemon, "available memory is unknown: ")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "balloond: low memory cannot be seen, as available memory is unknown: this host's memory "
        "figures: /proc/meminfo: No such file or directory; mount /proc whole (a service: "
        "ProcSubset=all), or name a directory with the files available and margin "
        "(--low-mem-dir)\n"
    )
    assert daemon.decision()["reason"] is None


@fault("no figures at all")
@needs_root
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"MemTotal": None}, "/proc/meminfo has no MemTotal"),
        ({"MemAvailable": None, "MemFree": None}, "has neither MemAvailable nor MemFree"),
    ],
)
def test_check_of_a_meminfo_without_the_figures_is_status_1(
    changes: dict[str, str | None], complaint: str, meminfo: Meminfo, tmp_path: Path
) -> None:
    meminfo.say(changes)

    done = check(launcher=meminfo.launcher(), socket=tmp_path / "s")

    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


@fault("`/proc/meminfo` without MemAvailable (a container's)")
@needs_root
def test_check_of_a_meminfo_without_available_memory_says_that_it_is_estimated(
    meminfo: Meminfo, tmp_path: Path
) -> None:
    meminfo.say({"MemAvailable": None})

    done = check(launcher=meminfo.launcher(), socket=tmp_path / "s")

    assert done.returncode == 0, done.stderr
    assert "available memory (estimated, as there is no MemAvailable) against 5.2 %" in done.stdout
    assert "now 2,048 MiB available, margin 212 MiB, not low" in done.stdout


# --- limits of cgroups ---

LIMIT_MIB = 400


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    try:
        made = memory_cgroup(LIMIT_MIB * MIB)
        with made as cgroup:
            yield cgroup
    except PermissionError as err:
        pytest.skip(f"needs a cgroup with a memory limit: {err}")


def hog(cgroup: MemoryCgroup, size_mib: int) -> "subprocess.Popen[bytes]":
    """A process in there that holds memory until its input ends."""
    program = f"held = b'x' * ({size_mib} << 20); print(flush=True); input()"
    process = subprocess.Popen(
        [*cgroup.launcher(), str(BALLOOND.with_name("python")), "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def test_check_in_a_cgroup_with_a_limit_says_which_counts(
    cgroup: MemoryCgroup, tmp_path: Path
) -> None:
    done = check(launcher=cgroup.launcher(), socket=tmp_path / "s")

    assert done.returncode == 0, done.stderr
    assert f" available within {cgroup.limit_file}, margin 20 MiB, not low" in done.stdout
    assert "; the host: " in done.stdout


def test_check_in_a_cgroup_without_a_limit_speaks_of_the_host(
    cgroup: MemoryCgroup, tmp_path: Path
) -> None:
    cgroup.limit(1 << 60)

    done = check(launcher=cgroup.launcher(), socket=tmp_path / "s")

    assert done.returncode == 0, done.stderr
    assert str(cgroup.path) not in done.stdout


@fault("container or slice with a memory limit, that leaves less than the host")
def test_check_in_a_cgroup_below_one_with_a_limit_says_which_counts(
    cgroup: MemoryCgroup, tmp_path: Path
) -> None:
    inner = cgroup.path / "inner"
    inner.mkdir()
    enter = ("sh", "-c", f'echo $$ > "{inner}/cgroup.procs" && exec "$@"', "sh")
    try:
        done = check(launcher=enter, socket=tmp_path / "s")
    finally:
        wait_until(
            lambda: not (inner / "cgroup.procs").read_text(), deadline_s=60, what="it is empty"
        )
        inner.rmdir()

    assert done.returncode == 0, done.stderr
    assert f" available within {cgroup.limit_file}, margin 20 MiB, not low" in done.stdout


@fault("container or slice with a memory limit, that leaves less than the host")
@fault("mistake in a configuration that is read anew")
def test_margin_that_a_start_refuses_is_refused_by_a_reload(
    start_on_own_figures: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text("[host]\nmargin = '1M'\n")
    daemon = start_on_own_figures("--config", str(file))

    file.write_text("[host]\nmargin = '9999G'\n")
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(
        lambda: facts(daemon, "config-refused", "config-reloaded") != [], what="it is read"
    )

    (mistake,) = (str(fact["mistake"]) for fact in facts(daemon, "config-mistake"))
    assert mistake.startswith("a margin of 9999 GiB on a host of ")
    assert mistake.endswith(" would always be low memory; give a smaller one")


@needs_root
def test_check_in_a_cgroup_namespace_finds_its_limit_all_the_same(
    cgroup: MemoryCgroup, tmp_path: Path
) -> None:
    launcher = (*cgroup.launcher(), "unshare", "--cgroup")

    done = check(launcher=launcher, socket=tmp_path / "s")

    assert done.returncode == 0, done.stderr
    assert f" available within {cgroup.limit_file}, margin 20 MiB, not low" in done.stdout


def test_margin_of_all_that_the_cgroup_allows_is_refused(
    cgroup: MemoryCgroup, tmp_path: Path
) -> None:
    def ask(margin: str) -> "subprocess.CompletedProcess[str]":
        return check("--margin", margin, launcher=cgroup.launcher(), socket=tmp_path / "s")

    refused, taken = ask("400M"), ask("399M")

    assert refused.returncode == 2
    assert refused.stderr == (
        f"balloond: a margin of 400 MiB below the limit of 400 MiB in {cgroup.limit_file} would "
        "always be low memory; give a smaller one\n"
    )
    assert taken.returncode == 0, taken.stderr


@fault("container or slice with a memory limit, that leaves less than the host")
def test_cgroup_that_fills_up_is_low_and_has_memory_back_when_it_empties(
    cgroup: MemoryCgroup, start_on_own_figures: StartDaemon, make_guest: MakeGuest
) -> None:
    # 400 MiB, of which balloond takes some 40: 200 more leave less than the margin.
    daemon = start_on_own_figures(
        "--margin", "250M", "--speed", FULL_SPEED, launcher=cgroup.launcher()
    )
    guest = attach(make_guest(), daemon)
    until_logged(guest, daemon, f"{cgroup.limit_file} is a limit: what is left below it")
    assert daemon.decision()["reason"] is None

    process = hog(cgroup, 200)
    try:
        until(guest, lambda: balloon_bytes(guest) == MAXIMUM)
        taken = [r for r in daemon.records() if r.get("reason") == "low-memory"]
    finally:
        process.communicate()
    until(guest, lambda: balloon_bytes(guest) == 0)

    assert {r["within"] for r in taken} == {str(cgroup.limit_file)}
    assert all(r["available_mib"] < 250 for r in taken)
    assert f"available within {cgroup.limit_file}, margin 250 MiB" in taken[0]["message"]


@fault("container or slice with a memory limit, that leaves less than the host")
def test_daemon_that_is_moved_into_a_cgroup_with_a_limit_goes_by_it(
    cgroup: MemoryCgroup, start_on_own_figures: StartDaemon, make_guest: MakeGuest
) -> None:
    daemon = start_on_own_figures()
    guest = attach(make_guest(), daemon)

    (cgroup.path / "cgroup.procs").write_text(f"{daemon.pid}\n")
    until_logged(guest, daemon, f"{cgroup.limit_file} is a limit: what is left below it")


@fault("container or slice with a memory limit, that leaves less than the host")
def test_limit_that_comes_while_it_runs_counts_from_then_on(
    cgroup: MemoryCgroup, start_on_own_figures: StartDaemon, make_guest: MakeGuest
) -> None:
    cgroup.limit(1 << 60)
    daemon = start_on_own_figures("--margin", "450M", launcher=cgroup.launcher())
    guest = attach(make_guest(), daemon)
    until(guest, lambda: facts(daemon, "device-ready") != [])

    cgroup.limit(LIMIT_MIB * MIB)
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)

    assert facts(daemon, "source-trouble")[-1]["what"] == (
        f"a margin of 450 MiB below the limit of 400 MiB in {cgroup.limit_file} would always be "
        "low memory"
    )

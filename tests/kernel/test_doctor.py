"""``balloonctl doctor``: each thing that it finds is produced, on this host's own kernel where it
can be, and found by the program as a user runs it."""

import json
import mmap
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.ctl.doctor.reader import read_host, swapped_bytes
from balloon_daemon.units import GIB, MIB
from tests.harness.daemon import BALLOOND, ROOT, Daemon
from tests.harness.host_setting import NR_HUGEPAGES, NoSwapError, changed, swap_on, zram
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SETTINGS, MakeGuest, StartDaemon
from tests.harness.needs import needs_root
from tests.harness.other_user import AS_NOBODY
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread, well
from tests.harness.vmm_files import figures_of
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import facts

BALLOONCTL = str(ROOT / ".venv/bin/balloonctl")
HUGE_BYTES = 2 * MIB
MADV_PAGEOUT = 21
"""asm-generic/mman-common.h, since Linux 5.4; Python's mmap module does not have it."""

Found = dict[str, Any]


def doctor(*arguments: str) -> tuple[int, str, str]:
    command = [BALLOONCTL, "doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    return done.returncode, done.stdout, done.stderr


def findings(*arguments: str) -> list[Found]:
    status, out, err = doctor("--json", *arguments)
    found: list[Found] = json.loads(out)["findings"]
    assert (status, err) == (1 if found else 0, "")
    return found


class Host:
    """A balloond, and the VM that it drives by QMP, of which this process is the VMM."""

    def __init__(self, path: Path, start: StartDaemon) -> None:
        self._path, self._start = path, start
        self._api = path / "api.sock"

    @contextmanager
    def runs(self, vm: ScriptedVm, *options: str) -> Iterator[Daemon]:
        monitor = ScriptedMonitor(self._path / "web.qmp", vm)
        config = self._path / "balloond.toml"
        config.write_text(f'[vm.web]\nqmp = "{monitor.path}"\n')
        own = ("--config", str(config), "--api", str(self._api), "--socket", str(self._path / "d"))
        with monitors_in_a_thread([monitor]):
            daemon = self._start(*own, *options, vm_mem_mib=None)
            daemon.wait(
                lambda: facts(daemon, "vm-attached", "vm-not-driven", "no-driver-yet") != [],
                what="the VM is driven, or not",
            )
            yield daemon

    def findings(self) -> dict[str, Found]:
        """What doctor finds of the VM, by the check's word."""
        found = findings("--api", str(self._api))
        return {each["check"]: each for each in found if each["vm"] == "web"}

    def waits_for(self, check: str, **figures: object) -> Found:
        """Waits until doctor finds something of the VM, with these figures among its own."""
        found: dict[str, Found] = {}

        def is_found() -> bool:
            found.clear()
            found.update(self.findings())
            return check in found and found[check]["figures"].items() >= figures.items()

        wait_until(is_found, what=f"{check} is found")
        return found[check]

    def says(self) -> tuple[int, str, str]:
        return doctor("--api", str(self._api))


@pytest.fixture
def host(tmp_path: Path, start_daemon: StartDaemon) -> Host:
    return Host(tmp_path, start_daemon)


@contextmanager
def pages_in_swap(size_bytes: int, flags: int) -> Iterator[None]:
    """So much of this process's memory is written, and swapped out."""
    with mmap.mmap(-1, size_bytes, flags=flags | mmap.MAP_ANONYMOUS) as memory:
        page = bytes(range(1, 256)) + b"1"
        for offset in range(0, size_bytes, MIB):
            memory[offset : offset + MIB] = page * (MIB // len(page))

        def is_out() -> bool:
            memory.madvise(MADV_PAGEOUT)
            return (swapped_bytes(os.getpid()) or 0) >= size_bytes * 3 // 4

        wait_until(is_out, what="the kernel swaps this process's pages out")
        yield


# --- what is found where nothing is wrong, or nobody can be asked -------------------------------


def test_vm_and_host_that_are_well_are_nothing_found(host: Host) -> None:
    with host.runs(well()):
        wait_until(lambda: host.findings() == {}, what="the guest's statistics have come")
        status, out, err = host.says()
    # Whoever runs the tests may have idle pools: this is about the VM.
    assert (status, err) == (1 if "host: " in out else 0, "")
    assert "looked at the host and 1 VM\n" in out
    assert "web: " not in out


def test_host_alone_is_looked_at_where_no_balloond_answers(tmp_path: Path) -> None:
    path = tmp_path / "none"
    status, out, err = doctor("--api", str(path))
    assert (status, err) == (1 if "host: " in out else 3, "")
    assert out.endswith(
        f"looked at the host alone; no VM was looked at, nor the margin: no balloond listens at "
        f"{path}; start it (as a service it does, by hand with --api {path}), or name another "
        "socket (--api)\n"
    )


@needs_root
def test_who_may_not_ask_balloond_has_the_host_looked_at(start_daemon: StartDaemon) -> None:
    with tempfile.TemporaryDirectory(prefix="balloond-test-") as name:
        os.chmod(name, 0o711)
        path = Path(name, "api.sock")
        start_daemon("--api", str(path))
        os.chmod(path, 0o666)
        # It must still be able to read this checkout, wherever that is.
        search = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        command = ["setpriv", *AS_NOBODY, *search, BALLOONCTL, "doctor", "--api", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (1 if "host: " in done.stdout else 4, "")
    assert "no VM was looked at, nor the margin: you may not ask: only root" in done.stdout


def test_something_else_that_answers_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [BALLOONCTL, "doctor", "--api", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            theirs, _ = listener.accept()
            with theirs:
                theirs.recv(1 << 16)
                theirs.sendall(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\n{}")
            told = client.stdout.read()
    assert client.returncode == (1 if "host: " in told else 3)
    assert f"what listens at {path} answers otherwise than balloond" in told


def test_directory_without_meminfo_is_a_mistake_of_the_users(tmp_path: Path) -> None:
    assert doctor("--root", str(tmp_path)) == (
        2,
        "",
        f"balloonctl doctor: {tmp_path}/proc/meminfo: No such file or directory; mount /proc, or "
        "name a directory with proc/meminfo (--root)\n",
    )


# --- guests -------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED], ids=["private", "shared"])
def test_free_pages_of_a_guest_in_host_swap(host: Host, tmp_path: Path, flags: int) -> None:
    file = tmp_path / "swap"
    file.touch(mode=0o600)
    with file.open("wb") as swap:
        for _ in range(128):
            swap.write(bytes(MIB))
    try:
        with swap_on(str(file)), pages_in_swap(96 * MIB, flags), host.runs(well()):
            found = host.waits_for("swapped")
    except NoSwapError as err:
        pytest.skip(f"needs a directory whose files can be swapped to: {err}")
    assert found["figures"]["swapped_bytes"] >= 72 * MIB
    assert found["figures"]["guest_free_bytes"] == 300 * MIB
    assert found["figures"]["vmm_pid"] == os.getpid()
    assert "--margin" in found["remedy"]


def test_balloon_that_gave_nothing_back(host: Host, low_mem: LowMemDir) -> None:
    vm = ScriptedVm(ram_bytes=512 * MIB, actual=512 * MIB, reports=True)
    vm.boot()
    vm.send_stats(free_memory=300 * MIB, available_memory=400 * MIB)
    # This process is the VMM: memory that it locks is not freed by any balloon.
    with mmap.mmap(-1, 640 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(23)  # MADV_POPULATE_WRITE
        with host.runs(vm) as daemon:
            low_mem.set_low()
            daemon.wait(lambda: facts(daemon, "balloon-missing") != [], what="it is missing")
            found = host.waits_for("nothing-returned")
    assert found["figures"]["balloon_bytes"] > 0
    assert found["figures"]["missing_bytes"] > 256 * MIB
    # The tests' own process may have freed some of its memory meanwhile, and used it again: then
    # the memory looks as if it had been read in again.
    assert "share=on" in found["remedy"] or "balloonctl release" in found["remedy"]


def test_vm_on_our_own_device_whose_memory_is_not_shared(
    start_daemon: StartDaemon, make_guest: MakeGuest, tmp_path: Path
) -> None:
    api = str(tmp_path / "api.sock")
    daemon = start_daemon("--api", api)
    # Its VMM connects, and has no memory table to send.
    make_guest(SETTINGS).connect(str(daemon.config.socket))
    daemon.wait(lambda: facts(daemon, "memory-not-shared") != [], what="that is noticed")
    (found,) = [each for each in findings("--api", api) if each["vm"] == "vm1"]
    assert found["check"] == "nothing-returned"
    assert "share=on" in found["remedy"]


def test_guest_without_a_driver(host: Host) -> None:
    with host.runs(ScriptedVm()):
        found = host.findings()
    assert found.keys() == {"no-driver"}
    assert "virtio_balloon" in found["no-driver"]["remedy"]


def test_guest_without_statistics(host: Host) -> None:
    vm = ScriptedVm()
    vm.boot()
    with host.runs(vm):
        found = host.findings()
    assert found.keys() == {"no-statistics"}
    assert "update the guest's balloon driver" in found["no-statistics"]["remedy"]


def test_two_controllers_of_one_balloon(host: Host, low_mem: LowMemDir) -> None:
    vm = well()
    with host.runs(vm) as daemon:
        low_mem.set_low()
        daemon.wait(lambda: vm.actual == GIB // 2, what="it is squeezed")
        vm.actual = GIB // 4  # As "virsh setmem" of somebody else does.
        daemon.wait(lambda: facts(daemon, "balloon-contested") != [], what="that is noticed")
        found = host.waits_for("contested")
    assert found["figures"] == {"balloon_bytes": 3 * GIB // 4, "target_bytes": GIB // 2}
    assert "pvestatd" in found["remedy"]


@pytest.mark.parametrize("name", ["pvestatd", "momd"])
def test_program_that_sets_balloons_too(name: str, tmp_path: Path) -> None:
    # The kernel calls a process by its program's file.
    program = tmp_path / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([str(program), "600"]) as process:
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(lambda: comm.read_text() == f"{name}\n", what="the program runs")
        rivals = read_host().rivals
        found = [each for each in found_of_host(tmp_path) if each["check"] == "rival"]
        process.kill()
    assert name in rivals
    assert name in [each["figures"]["rival"] for each in found]


@pytest.mark.parametrize(
    ("devices", "fault", "remedy"),
    [
        (["virtio-balloon-pci", "vfio-pci"], "pinned", "detach the host device"),
        (["virtio-blk-pci"], "no-balloon", "-device virtio-balloon-pci"),
    ],
)
def test_vm_whose_devices_leave_no_balloon(
    host: Host, devices: list[str], fault: str, remedy: str
) -> None:
    vm = well()
    vm.devices = devices
    with host.runs(vm):
        found = host.waits_for("not-driven", fault=fault)
    assert remedy in found["remedy"]


# --- the host -----------------------------------------------------------------------------------


def found_of_host(path: Path) -> list[Found]:
    """What doctor finds of this host where no balloond runs."""
    status, out, _ = doctor("--json", "--api", str(path / "none"))
    found: list[Found] = json.loads(out)["findings"]
    assert status == (1 if found else 3)
    return found


@contextmanager
def pool(pages: int) -> Iterator[None]:
    """A pool of so many huge pages more."""
    try:
        with changed(NR_HUGEPAGES, lambda before: str(int(before) + pages)) as before:
            if int(NR_HUGEPAGES.read_text()) != int(before) + pages:
                pytest.skip("needs huge pages that the kernel can make")
            yield
    except OSError as err:
        pytest.skip(f"needs root, to change {NR_HUGEPAGES}: {err.strerror}")


@needs_root
def test_pool_of_huge_pages_that_lies_idle(tmp_path: Path) -> None:
    facts = read_host()
    pages = facts.much_bytes // HUGE_BYTES + 1
    with pool(pages):
        idle = read_host().idle_pool_bytes
        found = {each["check"]: each for each in found_of_host(tmp_path)}
    assert idle == facts.idle_pool_bytes + pages * HUGE_BYTES
    assert found["huge-page-pool"]["figures"]["idle_pool_bytes"] == idle
    assert "vm.nr_hugepages" in found["huge-page-pool"]["remedy"]


@needs_root
def test_pages_of_a_pool_that_a_mapping_has_reserved_are_not_idle() -> None:
    before = read_host().idle_pool_bytes
    with pool(8):
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        os.ftruncate(fd, 8 * HUGE_BYTES)
        with mmap.mmap(fd, 8 * HUGE_BYTES):
            os.close(fd)
            assert read_host().idle_pool_bytes == before


@needs_root
def test_vm_in_huge_pages(host: Host) -> None:
    # More than all other memory of this process, which is the VMM.
    pages = (figures_of(os.getpid()).resident_bytes() or 0) // HUGE_BYTES + 64
    with pool(pages):
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        os.ftruncate(fd, pages * HUGE_BYTES)
        with mmap.mmap(fd, pages * HUGE_BYTES) as memory:
            os.close(fd)
            for offset in range(0, len(memory), HUGE_BYTES):
                memory[offset] = 1
            with host.runs(well()):
                found = host.waits_for("not-driven", fault="hugetlb")
    assert "hugepages" in found["remedy"]


@needs_root
def test_memory_that_swapping_to_zram_has_gained_for_a_time(tmp_path: Path) -> None:
    much = read_host().much_bytes
    size = (much * 3 // 2) // MIB * MIB
    try:
        with (
            zram(2 * size) as device,
            swap_on(device),
            pages_in_swap(size, mmap.MAP_PRIVATE),
        ):
            stored, used = read_host().zram
            found = {each["check"]: each for each in found_of_host(tmp_path)}
    except NoSwapError as err:
        pytest.skip(f"needs a kernel with zram: {err}")
    assert stored >= size * 3 // 4
    assert used < stored // 4
    assert found["zram"]["figures"]["stored_bytes"] >= size * 3 // 4
    assert "--margin" in found["zram"]["remedy"]


@pytest.mark.parametrize(
    ("share", "wrong"),
    [(0.6, "is half or more of"), (0.002, "is less than a hundredth of")],
    ids=["large", "small"],
)
def test_margin_that_does_not_fit_the_host(tmp_path: Path, share: float, wrong: str) -> None:
    api = tmp_path / "api.sock"
    margin_mib = int(read_host().usable_bytes * share) // MIB
    # Without --low-mem-dir: the margin is about this host's own MemAvailable.
    command = ["--socket", str(tmp_path / "d.sock"), "--api", str(api)]
    command += ["--margin", f"{margin_mib}M", "--dry-run"]
    with subprocess.Popen([str(BALLOOND), *command], stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_until(api.exists, what="balloond listens")

            def is_found() -> bool:
                return any(each["check"] == "margin" for each in findings("--api", str(api)))

            wait_until(is_found, what="its first reading")
            (found,) = [e for e in findings("--api", str(api)) if e["check"] == "margin"]
        finally:
            daemon.terminate()
    assert wrong in found["what"]
    assert found["figures"]["margin_bytes"] == margin_mib * MIB
    assert "5.2 %" in found["remedy"]


def test_margin_that_no_balloon_can_reach(host: Host, low_mem: LowMemDir, tmp_path: Path) -> None:
    found: dict[str, Found] = {}

    def is_found() -> bool:
        found.update({e["check"]: e for e in findings("--api", str(tmp_path / "api.sock"))})
        return "margin" in found

    with host.runs(well()):
        low_mem.set_low()
        wait_until(is_found, what="its balloon is at its most")
    assert found["margin"]["vm"] is None
    assert found["margin"]["figures"]["left_bytes"] < 100 * MIB
    assert "lower the VMs' floors" in found["margin"]["remedy"]


def test_low_memory_that_is_switched_off(host: Host, low_mem: LowMemDir, tmp_path: Path) -> None:
    (low_mem.path / "margin").write_text("off\n")
    with host.runs(well()):
        found = {each["check"]: each for each in findings("--api", str(tmp_path / "api.sock"))}
    assert "low memory is switched off" in found["no-figures"]["what"]

"""A whole balloond beside VMMs that hang, lie, send garbage or close, by each API: that VM alone
is lost for a while, and the others are squeezed as ever. For QEMU's monitors: test_driven_vms.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from balloon_daemon.config.vms import Kind
from balloon_daemon.units import GIB, MIB
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.fakes.crosvm import FakeCrosvm
from tests.fakes.firecracker import FakeFirecracker
from tests.fakes.http_vmm import HANGS, HttpVmm, Misbehaviour
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import StartDaemon
from tests.harness.scripted_monitor import monitors_in_a_thread
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import facts

Vmm = FakeFirecracker | FakeCloudHypervisor | FakeCrosvm
Misbehave = Callable[[Vmm], None]

MOST = 512 * MIB
"""The greatest balloon of a VM of 1 GiB."""

SIZES: tuple[object, ...] = (
    1 << 63,
    -1,
    2 * GIB,
    1 << 100,
    "1",
    None,
    1.5,
    float("nan"),
    [],
    True,
)
"""What cannot be the size of a balloon, in bytes or pages, of a VM of 1 GiB."""

STATS: dict[str, object] = {"free_memory": float("nan"), "available_memory": "much"}
"""Statistics that mean nothing: the VM is squeezed as one whose guest sends none."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


class Misdeed(NamedTuple):
    """What a VMM does from some moment on, and the fault that its VM is lost for."""

    name: str
    begin: Misbehave
    fault: str


def by_http(how: Misbehaviour) -> Misbehave:
    def begin(vmm: Vmm) -> None:
        assert isinstance(vmm, HttpVmm)
        vmm.misbehaviour = how

    return begin


def by_packet(raw: bytes) -> Misbehave:
    return lambda vmm: setattr(vmm, "raw", raw)


def answers(answer: object) -> Misbehave:
    """Gives one answer to whatever it is asked."""
    text = json.dumps(answer).encode()
    return by_http(Misbehaviour(OK + b"%d\r\n\r\n" % len(text) + text))


def of_firecracker(size: object) -> Misbehave:
    return answers({"state": "Running", "actual_pages": size})


def of_cloud_hypervisor(size: object) -> Misbehave:
    config = {"memory": {"size": GIB}, "balloon": {}}
    return answers({"state": "Running", "config": config, "memory_actual_size": size})


def of_crosvm(size: object) -> Misbehave:
    return by_packet(json.dumps({"BalloonStats": {"stats": {}, "balloon_actual": size}}).encode())


def lies(lie: Callable[[object], Misbehave]) -> list[Misdeed]:
    return [Misdeed(f"lie{n}", lie(size), "nonsense") for n, size in enumerate(SIZES)]


def is_silent(vmm: Vmm) -> None:
    assert isinstance(vmm, FakeCrosvm)
    vmm.driver = vmm.enotconn = False


def cuts_off(vmm: Vmm) -> None:
    for client in vmm.clients:
        client.cancel()


HTTP = [
    Misdeed("hang", by_http(HANGS), "hangs"),
    Misdeed("half-hang", by_http(Misbehaviour(OK + b"8\r\n\r\n{")), "hangs"),
    Misdeed("garbage", by_http(Misbehaviour(b"\0\xff\r\n\r\n" * 9)), "nonsense"),
    Misdeed("no-json", by_http(Misbehaviour(OK + b"6\r\n\r\n<html>")), "nonsense"),
    Misdeed("deep", by_http(Misbehaviour(OK + b"90000\r\n\r\n" + b"[" * 90000)), "nonsense"),
    Misdeed("endless", by_http(Misbehaviour(b"HTTP/1.1 200 x", endless=True)), "nonsense"),
    Misdeed("half", by_http(Misbehaviour(OK + b"8\r\n\r\n{", closes=True)), "gone"),
    Misdeed("close", by_http(Misbehaviour(closes=True)), "gone"),
]
PACKETS = [
    Misdeed("hang", is_silent, "hangs"),
    Misdeed("garbage", by_packet(b"\0\xff"), "nonsense"),
    Misdeed("deep", by_packet(b"[" * 60000), "nonsense"),
    Misdeed("long", by_packet(b" " * 70000), "nonsense"),
    Misdeed("half", by_packet(b'{"BalloonStats": {"stat'), "nonsense"),
    Misdeed("close", cuts_off, "gone"),
]


class Kinds(NamedTuple):
    """A kind of VMM.

    Attributes:
        serve: makes one at a path.
        misdeeds: what they do.
        balloon_bytes: the size of a VM's balloon.
        confuse: has its guest send ``STATS``.
    """

    serve: Callable[[Path], Any]
    misdeeds: list[Misdeed]
    balloon_bytes: Callable[[Any], int]
    confuse: Callable[[Any], None]


KINDS: dict[Kind, Kinds] = {
    Kind.FIRECRACKER: Kinds(
        lambda path: FakeFirecracker(path, stats={"minor_faults": 1}),
        HTTP + lies(of_firecracker),
        lambda vmm: vmm.actual_pages * 4096,
        lambda vmm: vmm.stats.update(STATS),
    ),
    Kind.CLOUD_HYPERVISOR: Kinds(
        lambda path: FakeCloudHypervisor(path, balloon_stats={"last_update": 1, "stats": {}}),
        HTTP + lies(of_cloud_hypervisor),
        lambda vmm: vmm.actual_bytes,
        lambda vmm: setattr(vmm, "balloon_stats", {"last_update": 2, "stats": STATS}),
    ),
    Kind.CROSVM: Kinds(
        FakeCrosvm,
        PACKETS + lies(of_crosvm),
        lambda vmm: vmm.actual_bytes,
        lambda vmm: vmm.stats.update(STATS),
    ),
}


def cure(vmm: Vmm) -> None:
    if isinstance(vmm, HttpVmm):
        vmm.misbehaviour = None
    else:
        vmm.raw, vmm.enotconn = None, True
        vmm.driver_comes()


def start(
    start_daemon: StartDaemon, kind: Kind, names: list[str], path: Path, *options: str
) -> Daemon:
    """A balloond that drives VMs whose sockets have these names. By the profile seed: nothing here
    is about guests in need."""
    file = path / "balloond.toml"
    file.write_text(
        "".join(
            f'[vm.{name}]\n{kind.value} = "{path}/{name}"\nprofile = "seed"\n' for name in names
        )
    )
    daemon = start_daemon("--config", str(file), *options, vm_mem_mib=None)
    for name in names:
        wait_for(daemon, "vm-attached", name)
    return daemon


def of_vm(daemon: Daemon, event: str, vm: str) -> list[dict[str, Any]]:
    return [record for record in facts(daemon, event) if record["vm"] == vm]


def wait_for(daemon: Daemon, event: str, vm: str, count: int = 1) -> dict[str, Any]:
    """Waits until an event about a VM has come so often, and gives the last one."""

    def has_come() -> bool:
        return len(of_vm(daemon, event, vm)) >= count

    daemon.wait(has_come, what=f"{event} of {vm}")
    return of_vm(daemon, event, vm)[-1]


def wait_squeezed(daemon: Daemon, how: Kinds, vmms: list[Any]) -> None:
    """Waits until all of these VMs have their greatest balloon."""

    def sizes() -> set[int]:
        return {how.balloon_bytes(vmm) for vmm in vmms}

    daemon.wait(lambda: sizes() == {MOST}, what="they are squeezed")


@fault("the VMM of a driven VM hangs, sends garbage")
@fault("the VMM of a driven VM says a size")
@pytest.mark.parametrize(
    ("kind", "how"), KINDS.items(), ids=lambda each: getattr(each, "name", "")
)
def test_vmm_that_misbehaves_is_lost_alone_and_found_again(
    kind: Kind, how: Kinds, tmp_path: Path, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    how = KINDS[kind]
    names = ["web", "confused", *(misdeed.name for misdeed in how.misdeeds)]
    web, confused, *bad = vmms = [how.serve(tmp_path / name) for name in names]

    def begin() -> None:
        how.confuse(confused)
        for vmm, misdeed in zip(bad, how.misdeeds, strict=True):
            misdeed.begin(vmm)

    def end() -> None:
        for vmm in bad:
            cure(vmm)

    with monitors_in_a_thread(vmms) as run:
        daemon = start(start_daemon, kind, names, tmp_path)
        run(begin)
        low_mem.set_low()
        wait_squeezed(daemon, how, [web, confused])
        lost = {
            misdeed.name: wait_for(daemon, "vm-lost", misdeed.name) for misdeed in how.misdeeds
        }
        run(end)
        wait_squeezed(daemon, how, bad)

        said = {name: record["fault"] for name, record in lost.items()}
        assert said == {misdeed.name: misdeed.fault for misdeed in how.misdeeds}
        assert not of_vm(daemon, "vm-lost", "web") + of_vm(daemon, "vm-lost", "confused")
        assert facts(daemon, "vm-failed", "finder-failed") == []


def vmm_process(stack: ExitStack, kind: Kind, path: Path) -> subprocess.Popen[bytes]:
    """A VMM's process at a path, which may be another one's still."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fakes.vmm_process", kind.value, str(path), "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    stack.callback(process.wait)
    stack.callback(process.kill)
    wait_until(path.exists, what="it listens")
    return process


@fault("a driven VM ends, and another process")
@pytest.mark.parametrize("kind", KINDS)
def test_vmm_that_is_started_anew_and_one_that_another_replaces_are_driven_in_turn(
    kind: Kind, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    path = tmp_path / "web"
    with ExitStack() as stack:
        first = vmm_process(stack, kind, path)
        daemon = start(start_daemon, kind, ["web"], tmp_path)
        first.kill()
        assert wait_for(daemon, "vm-lost", "web")["fault"] == "gone"

        second = vmm_process(stack, kind, path)
        again = wait_for(daemon, "vm-driven", "web", count=2)
        # The second goes on without its path; it is driven on as long as it lives.
        third = vmm_process(stack, kind, path)
        before = len(of_vm(daemon, "vm-lost", "web"))
        second.kill()
        last = wait_for(daemon, "vm-driven", "web", count=3)

        assert before == 1
        assert (again["pid"], last["pid"]) == (second.pid, third.pid)

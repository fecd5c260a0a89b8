"""What a VMM has answered is parsed in its turn, and dropped before the next call is waited for:
CPython takes up to 30 bytes for each byte of JSON, and one user may have many VMs."""

import gc
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from balloon_daemon.guests.driven.cloud_hypervisor import CloudHypervisorControl
from balloon_daemon.guests.driven.crosvm import CrosvmControl
from balloon_daemon.guests.driven.firecracker import FirecrackerControl
from balloon_daemon.guests.driven.parsing import TURNS
from balloon_daemon.units import MIB
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.fakes.crosvm import FakeCrosvm
from tests.fakes.firecracker import BALLOON, FakeFirecracker
from tests.fakes.http_vmm import Reply
from tests.harness.faults import fault
from tests.harness.vmm_talks import opened, talk_with

LENGTH = 15_013
"""No other list is as long; as JSON it has 44 KiB, and a crosvm's answer may have 64."""


def kept() -> int:
    """How many such lists there are now."""
    return sum(type(each) is list and len(each) == LENGTH for each in gc.get_objects())


@dataclass
class LargeCloudHypervisor(FakeCloudHypervisor):
    """Answers much, and notes what is left of that at the next call."""

    seen: list[int] = field(default_factory=list)

    def reply(self, method: str, target: str, body: object) -> Reply:
        if target.endswith("vm.balloon-stats"):
            self.seen.append(kept())
        else:
            self.config["x"] = [0] * LENGTH
        reply = super().reply(method, target, body)
        self.config.pop("x", None)
        return reply


@dataclass
class LargeFirecracker(FakeFirecracker):
    """As ``LargeCloudHypervisor``."""

    seen: list[int] = field(default_factory=list)

    def reply(self, method: str, target: str, body: object) -> Reply:
        if target == "/hotplug/memory":
            self.seen.append(kept())
        status, answer = super().reply(method, target, body)
        if isinstance(answer, dict) and target == "/vm/config":
            answer = answer | {"balloon": BALLOON | {"x": [0] * LENGTH}}
        return status, answer


@dataclass
class LargeCrosvm(FakeCrosvm):
    """As ``LargeCloudHypervisor``."""

    seen: list[int] = field(default_factory=list)

    def _answer(self, client: socket.socket, answer: object) -> None:
        if answer == "Ok":
            self.seen.append(kept())
        elif isinstance(answer, dict) and "BalloonStats" in answer:
            answer = {"BalloonStats": answer["BalloonStats"] | {"x": [0] * LENGTH}}
        super()._answer(client, answer)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the messages that are parsed, as far as they wait for room."""
    lengths: list[int] = []
    has_room = TURNS.has_room

    def noted(n_bytes: int) -> bool:
        lengths.append(n_bytes)
        return has_room(n_bytes)

    monkeypatch.setattr(TURNS, "has_room", noted)
    return lengths


@fault("the VMM of a driven VM hangs, sends garbage")
def test_large_answer_waits_for_its_turn(path: Path, parsed: list[int]) -> None:
    async def talk(vmm: LargeCloudHypervisor, control: CloudHypervisorControl) -> None:
        await opened(control)

    talk_with(LargeCloudHypervisor(path), CloudHypervisorControl, talk)
    assert max(parsed) > LENGTH


@fault("the VMM of a driven VM hangs, sends garbage")
def test_large_answer_of_a_crosvm_waits_for_its_turn(path: Path, parsed: list[int]) -> None:
    async def talk(vmm: LargeCrosvm, control: CrosvmControl) -> None:
        await opened(control)

    talk_with(LargeCrosvm(path), CrosvmControl, talk)
    assert max(parsed) > LENGTH


@fault("the VMM of a driven VM hangs, sends garbage")
def test_description_of_a_cloud_hypervisor_vm_is_dropped(path: Path) -> None:
    async def talk(vmm: LargeCloudHypervisor, control: CloudHypervisorControl) -> None:
        await opened(control)
        await control.sample()
        assert vmm.seen == [0, 0]

    stats = {"balloon_actual": 0, "last_update": 1, "stats": {}}
    talk_with(LargeCloudHypervisor(path, balloon_stats=stats), CloudHypervisorControl, talk)


@fault("the VMM of a driven VM hangs, sends garbage")
def test_configuration_of_a_firecracker_vm_is_dropped(path: Path) -> None:
    async def talk(vmm: LargeFirecracker, control: FirecrackerControl) -> None:
        await opened(control)
        assert vmm.seen == [0]

    talk_with(LargeFirecracker(path), FirecrackerControl, talk)


@fault("the VMM of a driven VM hangs, sends garbage")
def test_statistics_of_a_crosvm_vm_are_dropped(path: Path) -> None:
    async def talk(vmm: LargeCrosvm, control: CrosvmControl) -> None:
        await opened(control)
        vmm.driver = False
        await control.set_balloon(64 * MIB)
        vmm.driver = True
        await control.sample()
        assert vmm.seen == [0]

    talk_with(LargeCrosvm(path), CrosvmControl, talk)

"""Who gets the template's next device, and what becomes of one that is wanted no longer."""

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Callable, Coroutine
from time import monotonic as now_s
from time import sleep
from typing import Any

import pytest

from balloon_daemon.device.process import DeviceProcess, NotYetError
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.guests.jailed import forks as forks_module
from balloon_daemon.guests.jailed.forks import Forks, PendingFork, Wanted
from balloon_daemon.guests.jailed.peers import OF_THE_TEMPLATE, Peer, Peers
from balloon_daemon.guests.jailed.turns import OWED_S, SAVED_S
from balloon_daemon.tube.connection import DeviceEnd
from balloon_daemon.tube.messages import Command
from tests.fakes.asked_template import AskedTemplate
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S


class Children:
    """Starts programs in the place of devices, and holds their ends of the tubes itself."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.tubes: list[DeviceEnd] = []
        self.errors: list[OSError] = []
        """What the next requests come to instead."""

    def __call__(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> int:
        if self.errors:
            raise self.errors.pop(0)
        self.tubes.append(DeviceEnd(socket.socket(fileno=os.dup(tube_fd))))
        sleep = shutil.which("sleep")
        assert sleep is not None
        self.pids.append(os.posix_spawn(sleep, ["sleep", "600"], os.environ))
        return self.pids[-1]

    def gone(self, number: int) -> bool:
        """Whether a child was reaped."""
        try:
            os.kill(self.pids[number], 0)
        except ProcessLookupError:
            return True
        return False

    def close(self) -> None:
        for tube in self.tubes:
            tube.close()


class Scene:
    """A template that answers when it is told to, and guests that want devices of it."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.children = Children()
        self.template = AskedTemplate(self.children, at_once=at_once)
        self.first: list[str] = []
        self.forks = Forks(self.template, lambda: self.first.append("first"))
        self.peers = {uid: Peer(uid, Peers()) for uid in (1, 2, 3)}
        self.came: list[str] = []
        self.devices: list[DeviceProcess] = []
        self.failed: list[OSError] = []
        self.nothing: set[str] = set()
        """Guests that have nothing to serve when their turn comes."""
        self.takes_s = 0.0
        """How long a guest takes to begin with its device."""

    def want(self, uid: int, name: str) -> PendingFork:
        def spec() -> DeviceSpec | None:
            if name in self.nothing:
                return None
            return DeviceSpec(name, (), (), None, b"", None, must_tell_host=False)

        def forked(process: DeviceProcess) -> None:
            sleep(self.takes_s)
            self.came.append(name)
            self.devices.append(process)

        return self.forks.ask(self.peers[uid], Wanted(spec, forked, self.failed.append))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not condition():
                await asyncio.sleep(0.001)

    async def asked(self, count: int) -> None:
        """Waits until the template was asked for so many devices."""
        await self.until(lambda: len(self.template.asked) == count)

    def close(self) -> None:
        for process in self.devices:
            process.kill()
            os.waitpid(process.pid, 0)
            process.close()
        self.children.close()


def play(act: Callable[[Scene], Coroutine[Any, Any, None]], *, at_once: bool = False) -> Scene:
    async def whole() -> Scene:
        scene = Scene(at_once=at_once)
        try:
            await act(scene)
        finally:
            scene.close()
        return scene

    return asyncio.run(whole())


def test_one_request_at_a_time_and_nobody_is_called_back_at_once() -> None:
    async def act(scene: Scene) -> None:
        scene.want(1, "a")
        scene.want(1, "b")
        assert scene.template.asked == []
        await scene.asked(1)
        await asyncio.sleep(0.01)
        assert (scene.template.asked, scene.came) == (["a"], [])
        scene.template.tell()
        await scene.asked(2)
        assert scene.came == ["a"]
        scene.template.tell()
        await scene.until(lambda: scene.came == ["a", "b"])

    assert play(act).first == ["first"]


@fault("attaches and leaves in a loop, its device being forked each time")
def test_users_take_turns_however_many_devices_one_of_them_wants() -> None:
    async def act(scene: Scene) -> None:
        for name in ("a1", "a2", "a3", "a4"):
            scene.want(1, name)
        scene.want(2, "b1")
        scene.want(3, "c1")
        scene.want(2, "b2")
        await scene.until(lambda: len(scene.came) == 7)

    assert play(act, at_once=True).came == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


@fault("attaches and leaves in a loop, its device being forked each time")
def test_user_whose_share_of_the_template_is_used_up_rests_and_others_do_not() -> None:
    async def act(scene: Scene) -> None:
        scene.peers[1].charge_fork(SAVED_S + OWED_S)
        assert 0 < scene.peers[1].forks_again_in_s() <= OWED_S / OF_THE_TEMPLATE
        scene.want(1, "a")
        scene.want(2, "b")
        await scene.until(lambda: scene.came == ["b", "a"])

    play(act, at_once=True)


def test_user_without_a_connection_is_charged_for_what_it_left_behind() -> None:
    async def act(scene: Scene) -> None:
        peer = scene.peers[1]
        peer.charge_fork(100.0)
        assert peer._allowances.in_turns.charge(0.0, now_s()) < SAVED_S

    play(act)


@fault("attaches and leaves in a loop, its device being forked each time")
def test_time_in_which_a_guest_begins_with_its_device_is_its_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    charged: list[float] = []

    async def act(scene: Scene) -> None:
        monkeypatch.setattr(scene.peers[1], "charge_fork", charged.append)
        scene.takes_s = 0.2
        scene.want(1, "a")
        await scene.until(lambda: scene.came == ["a"])

    play(act, at_once=True)
    assert sum(charged) >= 0.2


@fault("a VMM stops its rings or hangs up, or balloond is told to end, makes way or is killed")
def test_device_dropped_while_it_is_forked_gets_no_order_and_is_reaped() -> None:
    async def act(scene: Scene) -> None:
        pending = scene.want(1, "a")
        scene.want(2, "b")
        await scene.asked(1)
        pending.drop()
        # A device that waits for its first order finds its tube at an end instead.
        assert not scene.children.tubes[0].wait_for_order()
        scene.template.tell()
        await scene.asked(2)
        scene.template.tell()
        await scene.until(lambda: scene.children.gone(0) and scene.came == ["b"])

    assert play(act).failed == []


def test_request_dropped_in_the_line_is_never_sent_and_takes_no_room() -> None:
    async def act(scene: Scene) -> None:
        scene.want(1, "a")
        for _ in range(1000):
            scene.want(2, "b").drop()
        assert not scene.forks._lines[2].waiting
        scene.want(2, "c")
        await scene.until(lambda: scene.came == ["a", "c"])

    assert play(act, at_once=True).template.asked == ["a", "c"]


def test_guest_with_nothing_to_serve_when_its_turn_comes_is_passed_over() -> None:
    async def act(scene: Scene) -> None:
        scene.nothing.add("a")
        scene.want(1, "a")
        scene.want(1, "b")
        await scene.until(lambda: scene.came == ["b"])

    play(act, at_once=True)


@fault("template (forks the devices) killed")
def test_template_that_is_being_started_is_asked_again_for_the_same_device_first() -> None:
    async def act(scene: Scene) -> None:
        scene.children.errors = [NotYetError(0.001), NotYetError(0.001)]
        scene.want(1, "a")
        scene.want(1, "b")
        await scene.until(lambda: scene.came == ["a", "b"])

    assert play(act, at_once=True).failed == []


def test_fork_that_fails_is_told_and_the_next_one_goes_on() -> None:
    async def act(scene: Scene) -> None:
        scene.children.errors = [OSError(12, "no memory")]
        scene.want(1, "a")
        scene.want(1, "b")
        await scene.until(lambda: scene.came == ["b"])

    assert [err.errno for err in play(act, at_once=True).failed] == [12]


@fault("template hangs (SIGSTOP)")
def test_template_that_does_not_answer_is_given_up_and_the_tube_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks_module, "ANSWER_WITHIN_S", 0.01)

    async def act(scene: Scene) -> None:
        scene.want(1, "a")
        await scene.until(lambda: scene.failed != [])
        assert not scene.children.tubes[0].wait_for_order()
        os.kill(scene.children.pids[0], signal.SIGKILL)
        os.waitpid(scene.children.pids[0], 0)
        scene.want(1, "b")
        await scene.asked(2)
        scene.template.tell()
        await scene.until(lambda: scene.came == ["b"])

    assert [str(err) for err in play(act).failed] == ["[Errno 11] does not answer"]


@fault("device cannot be watched by its controller (no descriptor for it)")
def test_device_that_cannot_be_watched_is_ended_and_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(23, os.strerror(23))

    async def act(scene: Scene) -> None:
        scene.want(1, "a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", refuse)
            await scene.until(lambda: scene.failed != [])
        await scene.until(lambda: scene.children.gone(0))

    assert [err.errno for err in play(act, at_once=True).failed] == [23]


def test_device_that_came_has_had_no_order_before_its_guest_gives_it_one() -> None:
    async def act(scene: Scene) -> None:
        scene.want(1, "a")
        await scene.until(lambda: scene.came == ["a"])
        assert scene.children.tubes[0].receive() == []
        scene.devices[0].begin(look=True)
        assert scene.children.tubes[0].receive() == [Command.STOP]

    play(act, at_once=True)


@fault("`systemctl restart`, SIGUSR1")
def test_controller_that_leaves_forks_nothing_more() -> None:
    async def act(scene: Scene) -> None:
        scene.want(1, "a")
        scene.want(1, "b")
        await scene.asked(1)
        scene.forks.close()
        assert not scene.children.tubes[0].wait_for_order()
        scene.want(2, "c").drop()
        scene.want(2, "d")
        scene.template.tell()
        await scene.until(lambda: scene.children.gone(0))

    scene = play(act)
    assert (scene.template.asked, scene.came) == (["a"], [])

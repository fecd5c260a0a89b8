"""The process that makes libvirt's calls: what a hanging domain costs, and what ends the process.

Played by a scripted client; nothing here needs libvirt.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.control import ControlError, Notice
from balloon_daemon.guests.libvirt import process
from balloon_daemon.guests.libvirt.client import MAX_HANGING, Client
from balloon_daemon.guests.libvirt.connection import Connection
from balloon_daemon.guests.libvirt.control import DomainControl
from balloon_daemon.guests.libvirt.wire import Domain, Event, Happened
from balloon_daemon.guests.seam import GuestState
from balloon_daemon.linux.apart import LOW, LowNumbers
from balloon_daemon.sizing.back_off import FIRST_S, BackOff
from tests.fakes.scripted_libvirt import COMMAND, FIGURES, TOGETHER
from tests.harness.faults import fault
from tests.harness.open_files import open_files
from tests.harness.slow_close import MuteFile
from tests.harness.waiting import HANG_S

SHORT_S = 0.05
"""After so long a call counts as hanging in these tests."""


def ignore(happened: Happened) -> None:
    """Takes an event."""


@contextlib.asynccontextmanager
async def started(
    heard: Callable[[Happened], None] = ignore, low: LowNumbers | None = None
) -> AsyncIterator[Client]:
    low = low or LowNumbers()
    client = await Client.start(COMMAND, low, heard)
    try:
        yield client
    finally:
        assert await client.close()
        low.close()


@contextlib.asynccontextmanager
async def connected(uri: str = "scripted:") -> AsyncIterator[Connection]:
    connection = Connection(uri, LowNumbers(), ignore, lambda: COMMAND)
    try:
        yield connection
    finally:
        await connection.close()


async def sample(client: Client, domain: str, within_s: float = HANG_S) -> object:
    return await client.call("sample", {"uuid": domain}, domain, within_s)


async def fault_of(client: Client, domain: str, within_s: float = HANG_S) -> Fault:
    with pytest.raises(ControlError) as caught:
        await sample(client, domain, within_s)
    return caught.value.fault


def test_call_is_answered() -> None:
    async def scene() -> None:
        async with started() as client:
            assert await sample(client, "web") == {"uuid": "web", **FIGURES}

    asyncio.run(scene())


@fault("a domain's QEMU does not answer")
def test_domain_that_hangs_delays_no_other() -> None:
    async def scene() -> None:
        async with started() as client:
            hanging = asyncio.ensure_future(fault_of(client, "hangs", SHORT_S))
            for _ in range(100):
                await sample(client, "web")
            assert await hanging is Fault.HANGS
            await sample(client, "web")

    asyncio.run(scene())


@fault("a domain's QEMU does not answer")
def test_domain_that_hangs_gets_no_second_call() -> None:
    async def scene() -> None:
        async with started() as client:
            assert await fault_of(client, "hangs", SHORT_S) is Fault.HANGS
            # At once, although this one could wait long: there is no call.
            assert await fault_of(client, "hangs") is Fault.HANGS
            assert client.why_ended is None

    asyncio.run(scene())


def test_no_more_than_four_calls_are_made_at_a_time() -> None:
    async def scene() -> None:
        async with started() as client:
            # The client would say so if there were a fifth, and answers none before there are
            # four.
            calls = (sample(client, f"together-{n}") for n in range(5 * TOGETHER))
            assert await asyncio.gather(*calls) == [FIGURES] * (5 * TOGETHER)

    asyncio.run(scene())


@fault("three calls of libvirt")
def test_client_with_too_many_calls_that_hang_is_killed() -> None:
    async def scene() -> None:
        async with started() as client:
            calls = (fault_of(client, f"hangs-{n}", SHORT_S) for n in range(MAX_HANGING))
            assert await asyncio.gather(*calls) == [Fault.HANGS] * MAX_HANGING
            assert await client.ended(HANG_S)
            assert client.why_ended is not None
            assert client.why_ended.fault is Fault.HANGS
            assert await fault_of(client, "web") is Fault.GONE

    asyncio.run(scene())


@fault("three calls of libvirt")
def test_domains_that_hang_again_and_again_cost_others_two_clients_and_are_asked_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[float] = []
    hostile = [f"hangs-{number}" for number in range(2 * MAX_HANGING)]

    def command() -> list[str]:
        starts.append(asyncio.get_running_loop().time())
        return COMMAND

    async def ask(connection: Connection, name: str) -> bool:
        try:
            client = await connection.client(name)
            await sample(client, name, SHORT_S if name in hostile else HANG_S)
        except ControlError:
            return False
        return True

    async def scene() -> None:
        connection = Connection("scripted:", LowNumbers(), ignore, command)
        served = 0
        async with asyncio.timeout(HANG_S):
            # All domains connect over and over, as their finders would have them do.
            while served < 20:
                web, *hung = await asyncio.gather(
                    *(ask(connection, name) for name in ("web", *hostile))
                )
                assert not any(hung)
                served = served + 1 if web else 0
                await asyncio.sleep(SHORT_S)
        assert len(starts) == 3
        with pytest.raises(ControlError, match="not asked for") as caught:
            await DomainControl(connection, hostile[0]).open(lambda notice: None)
        assert caught.value.fault is Fault.HANGS
        # When a domain's rest is over the domain is asked again, as it may answer by then.
        monkeypatch.setattr(BackOff, "lasts", lambda rest, now_s: now_s + FIRST_S < rest.until_s)
        assert await connection.client(hostile[0]) is await connection.client("web")
        await connection.close()

    asyncio.run(scene())


def test_calls_that_wait_for_a_place_fail_with_the_client() -> None:
    async def scene() -> None:
        async with started() as client:
            calls = [asyncio.ensure_future(fault_of(client, f"hangs-{n}")) for n in range(9)]
            os.kill(client.pid, signal.SIGKILL)
            assert await asyncio.gather(*calls) == [Fault.GONE] * 9

    asyncio.run(scene())


def test_cancelled_call_keeps_its_domain_busy_until_it_is_answered() -> None:
    async def scene() -> None:
        async with started() as client:
            call = asyncio.ensure_future(sample(client, "hangs"))
            await sample(client, "web")
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await fault_of(client, "hangs") is Fault.HANGS

    asyncio.run(scene())


@fault("libvirt's client is killed, talks")
@pytest.mark.parametrize(
    ("domain", "fault"),
    [
        ("garbage", Fault.NONSENSE),
        ("endless", Fault.NONSENSE),
        ("twice", Fault.NONSENSE),
        ("half", Fault.GONE),
        ("bug", Fault.GONE),
    ],
)
def test_client_that_talks_nonsense_or_ends_is_ended(domain: str, fault: Fault) -> None:
    async def scene() -> None:
        async with started() as client:
            with contextlib.suppress(ControlError):  # One of them does answer, twice.
                await sample(client, domain)
            assert await client.ended(HANG_S)
            assert client.why_ended is not None
            assert client.why_ended.fault is fault

    asyncio.run(scene())


def test_event_is_heard() -> None:
    async def scene() -> None:
        heard: list[Happened] = []
        async with started(heard.append) as client:
            await sample(client, "event-reset")
        assert heard == [Happened(Event.RESET, Domain("event-reset", "event-reset"))]

    asyncio.run(scene())


@fault("libvirt tells of one reset")
def test_several_events_of_one_reset_are_one_notice() -> None:
    async def scene() -> None:
        notices: list[Notice] = []
        async with connected() as connection:
            # The client sends the event before each of its answers.
            control = DomainControl(connection, "event-reset")
            found = await control.open(notices.append)
            assert (found.state, found.balloon_bytes) == (GuestState.RUNNING, 0)
            for _ in range(3):
                sample = await control.sample()
                # Statistics are those from before the reset: no driver listens.
                assert (sample.state, sample.balloon_bytes) == (GuestState.NO_DRIVER, None)
            control.close()
        assert notices == [Notice.RESET]

    asyncio.run(scene())


def test_domain_that_has_stopped_is_gone() -> None:
    async def scene() -> None:
        async with connected() as connection:
            control = DomainControl(connection, "event-stopped")
            await control.open(lambda notice: None)
            gone = asyncio.ensure_future(control.gone())
            await control.sample()
            await asyncio.wait_for(gone, HANG_S)
            control.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("event", "notice"),
    [
        ("balloon", Notice.CHANGED),
        ("changed", Notice.CHANGED),
        ("refilled", Notice.REFILLED),
    ],
)
def test_event_is_noticed(event: str, notice: Notice) -> None:
    async def scene() -> None:
        notices: list[Notice] = []
        async with connected() as connection:
            control = DomainControl(connection, f"event-{event}")
            await control.open(notices.append)
            await control.sample()
            control.close()
        assert notices == [notice]

    asyncio.run(scene())


def test_size_that_is_no_size_of_a_balloon_needs_to_be_read_twice() -> None:
    async def scene() -> None:
        async with connected() as connection:
            # Larger than the VM for one reading: half-written, with a driver of legacy virtio.
            control = DomainControl(connection, "torn")
            await control.open(lambda notice: None)
            assert (await control.sample()).balloon_bytes == 0
            control.close()

    asyncio.run(scene())


def test_domain_whose_size_is_not_told_has_no_known_balloon() -> None:
    async def scene() -> None:
        async with connected() as connection:
            control = DomainControl(connection, "unsized")
            found = await control.open(lambda notice: None)
            sample = await control.sample()
            control.close()
        assert (found.balloon_bytes, sample.balloon_bytes) == (0, None)

    asyncio.run(scene())


@pytest.mark.parametrize(("name", "restored"), [("restored", True), ("booted", False)])
def test_domain_that_was_restored_is_known(name: str, restored: bool) -> None:
    async def scene() -> None:
        async with connected() as connection:
            control = DomainControl(connection, name)
            found = await control.open(lambda notice: None)
            control.close()
        assert (found.vm_uuid, found.restored) == (name, restored)

    asyncio.run(scene())


def test_period_of_statistics_ends_as_it_was_found() -> None:
    async def scene() -> None:
        async with connected() as connection:
            # It was found with 7 s, and refuses all but that and 1 s.
            control = DomainControl(connection, "seventh")
            await control.open(lambda notice: None)
            await control.watch(0.4)
            await control.watch(None)
            control.close()

    asyncio.run(scene())


@fault("another program sets how often a domain")
def test_period_is_set_again_where_statistics_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with connected() as connection:
            control = DomainControl(connection, "silent")
            await control.open(lambda notice: None)
            assert (await control.sample()).stats is None  # Nobody watches it.
            await control.watch(1.0)
            assert (await control.sample()).stats is None
            assert (await control.sample()).stats is None
            monkeypatch.setattr("balloon_daemon.guests.libvirt.control.MISSED", 0)
            assert (await control.sample()).stats is None  # It refuses.
            assert (await control.sample()).stats is None
            assert (await control.sample()).stats is not None
            control.close()

    asyncio.run(scene())


@fault("libvirt's client is killed, talks")
def test_client_that_was_killed_is_replaced_at_once() -> None:
    async def scene() -> None:
        async with connected() as connection:
            first = await connection.client()
            os.kill(first.pid, signal.SIGKILL)
            assert await first.ended(HANG_S)
            second = await connection.client()
            assert second.pid != first.pid
            await sample(second, "web")
            # What is gone stays so for those who still have it.
            assert await fault_of(first, "web") is Fault.GONE

    asyncio.run(scene())


@fault("libvirt's client is killed, talks")
def test_client_that_ends_again_and_again_is_waited_for() -> None:
    starts: list[list[str]] = []

    def command() -> list[str]:
        starts.append(COMMAND)
        return COMMAND

    async def scene() -> None:
        connection = Connection("dies:", LowNumbers(), ignore, command)
        for _ in range(3):
            with pytest.raises(ControlError) as caught:
                await connection.client()
            assert caught.value.fault is Fault.GONE
        await connection.close()
        # The third was no attempt: a second must go by before it.
        assert len(starts) == 2

    asyncio.run(scene())


def test_connection_that_is_refused_says_why() -> None:
    async def scene() -> None:
        async with connected("refuses:no-permission") as connection:
            with pytest.raises(ControlError, match="its own words") as caught:
                await connection.client()
            assert caught.value.fault is Fault.NO_PERMISSION

    asyncio.run(scene())


LACKING = """
import sys
from balloon_daemon.guests.libvirt import interpreter
sys.modules["libvirt"] = None  # It is not found.
interpreter.SYSTEM_PYTHON = sys.argv[1]
interpreter.main(sys.argv[2])
"""


def lacking(system_python: str) -> list[str]:
    """A client's command, in an interpreter without libvirt's library."""
    return [sys.executable, "-c", LACKING, system_python]


@fault("libvirt's library")
def test_client_goes_on_in_the_systems_interpreter_where_its_own_lacks_the_library(
    tmp_path: Path,
) -> None:
    said = tmp_path / "said"
    system_python = tmp_path / "python3"
    system_python.write_text(f'#!/bin/sh\n{{ echo "$@"; readlink /proc/$$/fd/$3; }} > {said}\n')
    system_python.chmod(0o755)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        link = os.readlink(f"/proc/self/fd/{fd}")
        subprocess.run([*lacking(str(system_python)), str(fd)], pass_fds=[fd], check=True)
    assert said.read_text() == f"-I {process.__file__} {fd}\n{link}\n"


@fault("libvirt's library")
def test_missing_library_is_said() -> None:
    async def scene() -> None:
        connection = Connection(
            "qemu:///system", LowNumbers(), ignore, lambda: lacking("/nowhere")
        )
        with pytest.raises(ControlError) as caught:
            await connection.client()
        assert caught.value.fault is Fault.NO_LIBRARY
        await connection.close()

    asyncio.run(scene())


def test_client_has_none_of_our_descriptors(tmp_path: Path) -> None:
    async def scene() -> None:
        low = LowNumbers()
        with (tmp_path / "guest memory").open("w") as file:
            async with started(low=low) as client:
                await sample(client, "web")
                assert file.name not in open_files(client.pid).values()

    asyncio.run(scene())


@fault("libvirt's client is started while")
def test_client_starts_beside_a_file_whose_close_hangs(tmp_path: Path) -> None:
    # A VMM may have sent it; exec would close it, and wait for its server for ever.
    async def scene(low: LowNumbers) -> None:
        async with started(low=low) as client:
            await sample(client, "web")

    low = LowNumbers()
    try:
        mute = MuteFile(tmp_path / "mute")
    except PermissionError as err:
        low.close()
        pytest.skip(str(err))
    try:
        assert mute.fd >= LOW
        asyncio.run(scene(low))
        assert not mute.is_being_closed
    finally:
        mute.close()

"""Paths whose lookup may wait for ever: children look them up."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from balloon_daemon.guests.driven import lookups, path_orders
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.directories import Directories
from balloon_daemon.guests.driven.discovery import Search
from balloon_daemon.guests.driven.lookups import LOOKUPS, Lookups
from balloon_daemon.guests.driven.unix_socket import connect, socket_at
from balloon_daemon.guests.libvirt.qemu_process import find_pid
from balloon_daemon.linux import asked_child
from balloon_daemon.linux.asked_child import AskedChild
from tests.fakes.quick_loop import run_quickly
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import StartDaemon
from tests.harness.needs import needs_root
from tests.harness.other_user import NOBODY
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.slow_close import MuteDirectory
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import facts

Scene = Callable[[Lookups], Awaitable[None]]

OTHER = NOBODY - 1
"""A user who is neither root nor nobody."""


def answers(order: Sequence[object], fd: int, enters: Callable[[int], None]) -> Iterator[object]:
    """Waits for ever in directories whose name has "slow", after it has told their owner, and
    looks for ever in "long"; tells who looks."""
    path = str(order[1])
    while path == "/long":
        yield os.getpid()
        time.sleep(path_orders.PAUSE_S)
    if "slow" in path:
        enters(int(path.rpartition("-")[2]))
        threading.Event().wait()
    yield os.getpid()


@pytest.fixture
def play() -> Iterator[Callable[[Scene], None]]:
    """Plays a scene with lookups of its own, which are closed."""
    made: list[Lookups] = []

    def play(scene: Scene) -> None:
        made.append(Lookups(answers))

        async def run() -> None:
            await scene(made[-1])

        asyncio.run(run())

    yield play
    for each in made:
        wait_until(each.close, what="its children end")
        if each.low is not None:
            each.low.close()


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[MuteDirectory]:
    try:
        directory = MuteDirectory(tmp_path / "mount")
    except OSError as err:
        pytest.skip(f"needs root, to mount a file system of FUSE: {err}")
    yield directory
    directory.close()


async def who_looks(looks: Lookups, directory: str) -> int:
    pids: list[int] = []

    def take(part: object) -> None:
        assert isinstance(part, int)
        pids.append(part)

    await looks.ask(["watch", directory], take)
    return pids[0]


async def is_late(looks: Lookups, directory: str) -> bool:
    try:
        await who_looks(looks, directory)
    except ControlError as err:
        return err.fault is Fault.PATH_HANGS
    return False


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == asked_child.NAME]


@fault("a user keeps those waiting who look names up")
def test_lookup_that_hangs_holds_up_no_other_directory(play: Callable[[Scene], None]) -> None:
    async def scene(looks: Lookups) -> None:
        slow = asyncio.create_task(is_late(looks, "/slow-1"))
        await asyncio.sleep(0)  # It is asked for first.
        first = await who_looks(looks, "/a")
        assert first == await who_looks(looks, "/b")
        assert not slow.done()
        assert await slow

    play(scene)


@fault("a user makes sockets over and over")
def test_directories_take_turns_however_many_names_one_of_them_has(
    play: Callable[[Scene], None],
) -> None:
    looked: list[str] = []

    async def look(looks: Lookups, directory: str) -> None:
        await who_looks(looks, directory)
        looked.append(directory)

    async def scene(looks: Lookups) -> None:
        await asyncio.gather(*(look(looks, each) for each in [*["/a"] * 50, "/b"]))

    play(scene)
    assert looked.index("/b") <= 2


@fault("a user makes sockets over and over")
def test_names_that_wait_in_a_slow_directory_make_no_other_lookup_longer(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "WITHIN_S", HANG_S)
    passed: list[str] = []
    refuses = lookups._Late.refuses

    def counted(self: lookups._Late, request: lookups._Request) -> bool:
        passed.append(request.place)
        return refuses(self, request)

    async def scene(looks: Lookups) -> None:
        slow = [asyncio.create_task(is_late(looks, "/slow-1")) for _ in range(200)]
        await asyncio.sleep(0)  # They are asked for first.
        await who_looks(looks, "/b")
        monkeypatch.setattr(lookups._Late, "refuses", counted)
        await who_looks(looks, "/b")
        for each in slow:
            each.cancel()

    play(scene)
    assert 0 < len(passed) < 20


@fault("a user keeps those waiting who look names up")
def test_directory_whose_lookups_hang_is_left_alone_for_a_time_that_doubles(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[AskedChild] = []

    def forked(*args: object) -> AskedChild:
        forks.append(AskedChild(*args))  # type: ignore[arg-type] # as it was called
        return forks[-1]

    monkeypatch.setattr(lookups, "AskedChild", forked)
    monkeypatch.setattr(lookups, "AGAIN_S", 100.0)

    async def scene(looks: Lookups) -> None:
        assert await is_late(looks, "/slow-1")
        n_forks = len(forks)
        assert await is_late(looks, "/slow-1")
        assert len(forks) == n_forks
        await who_looks(looks, "/a")

    play(scene)


@fault("a user keeps those waiting who look names up")
def test_children_that_cannot_be_killed_are_bounded_for_an_owner_and_for_all(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = AskedChild.is_gone
    monkeypatch.setattr(AskedChild, "is_gone", lambda child: False)

    async def scene(looks: Lookups) -> None:
        most, of_one = lookups.MOST_CHILDREN, lookups.MOST_OF_ONE_OWNER
        names = [f"/{number}-slow-1" for number in range(of_one)]
        assert all(await asyncio.gather(*(is_late(looks, name) for name in names)))
        assert await is_late(looks, names[0])
        await who_looks(looks, "/a")  # Of another owner.

        names = [f"/{number}-slow-{number}" for number in range(2, most)]
        assert all(await asyncio.gather(*(is_late(looks, name) for name in names)))
        assert await is_late(looks, "/a")
        assert len(children()) == most

    play(scene)
    monkeypatch.setattr(AskedChild, "is_gone", really)


def test_search_that_takes_long_holds_up_no_other_directory(play: Callable[[Scene], None]) -> None:
    async def scene(looks: Lookups) -> None:
        pids: list[object] = []
        long = asyncio.create_task(looks.ask(["match", "/long", "*"], pids.append))
        while not pids:
            await asyncio.sleep(0.01)
        n_parts = len(pids)
        pid = await who_looks(looks, "/a")
        assert pid not in pids
        while len(pids) == n_parts:
            await asyncio.sleep(0.01)
        assert not long.done()
        looks.close()
        with pytest.raises(ControlError):
            await long

    play(scene)


def test_idle_child_ends_and_is_reaped(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "IDLE_S", 0.1)

    async def scene(looks: Lookups) -> None:
        pid = await who_looks(looks, "/a")
        while psutil.pid_exists(pid):
            await asyncio.sleep(0.01)
        assert await who_looks(looks, "/a") != pid

    play(scene)


def test_child_that_answers_each_request_is_not_late(play: Callable[[Scene], None]) -> None:
    async def scene(looks: Lookups) -> None:
        began_s, pids = time.monotonic(), set[int]()
        while time.monotonic() < began_s + 1.5 * lookups.WITHIN_S:
            pids |= set(await asyncio.gather(*(who_looks(looks, f"/{n}") for n in range(3))))
        assert pids <= {child.pid for child in children()}

    play(scene)


def test_killed_child_is_replaced(play: Callable[[Scene], None]) -> None:
    async def scene(looks: Lookups) -> None:
        pid = await who_looks(looks, "/a")
        psutil.Process(pid).kill()
        with contextlib.suppress(OSError):
            await who_looks(looks, "/a")
        assert await who_looks(looks, "/a") != pid

    play(scene)


def test_child_has_no_connection_of_its_parents(
    play: Callable[[Scene], None],
) -> None:
    async def scene(looks: Lookups) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        slow = asyncio.create_task(is_late(looks, "/slow-1"))
        await asyncio.sleep(0)
        pid = await who_looks(looks, "/a")
        assert psutil.pid_exists(pid)
        ours.close()
        assert theirs.recv(1) == b""
        theirs.close()
        assert await slow

    play(scene)


def test_socket_is_connected_by_its_child_and_no_other_than_was_found(tmp_path: Path) -> None:
    path = str(tmp_path / "web.qmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        async def run() -> None:
            resolved, identity = await socket_at(path, lookups.LOOKUPS.ask)
            assert (resolved, identity) == (path, (os.stat(path).st_dev, os.stat(path).st_ino))
            with await connect(path, socket.SOCK_STREAM, identity) as sock:
                peer, _ = listener.accept()
                with peer:
                    peer.send(b"QMP")
                    assert sock.recv(3) == b"QMP"
            with pytest.raises(ControlError) as refused:
                await connect(path, socket.SOCK_STREAM, (0, 1))
            assert refused.value.fault is Fault.NOT_THERE

        asyncio.run(run())


@fault("a user's symbolic link among the sockets that a pattern finds")
def test_socket_that_was_replaced_by_a_link_is_not_connected(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found, socket.socket(socket.AF_UNIX) as private:
        for listener, name in ((found, "web.qmp"), (private, "private")):
            listener.bind(str(tmp_path / name))
            listener.listen()
        private.setblocking(False)

        async def run() -> None:
            path = str(tmp_path / "web.qmp")
            _, identity = await socket_at(path, lookups.LOOKUPS.ask)
            os.rename(path, tmp_path / "old")
            os.symlink("private", path)
            with pytest.raises(ControlError):
                await connect(path, socket.SOCK_STREAM, identity)
            with pytest.raises(BlockingIOError):
                private.accept()

        asyncio.run(run())


@needs_root
@fault("a user's symbolic link among the sockets that a pattern finds")
@pytest.mark.parametrize(
    ("of_socket", "of_link", "connects"),
    [(0, NOBODY, False), (NOBODY, OTHER, False), (NOBODY, NOBODY, True), (NOBODY, 0, True)],
)
@pytest.mark.parametrize("named", ["link", "link-to-link", "directory/web.sock", "of-process"])
def test_socket_of_another_user_than_the_links_is_not_connected(
    tmp_path: Path, named: str, of_socket: int, of_link: int, connects: bool
) -> None:
    path = tmp_path / "web.sock"
    links = {
        "link": "web.sock",
        "link-to-link": "link",
        "directory": ".",
        "of-process": f"/proc/{os.getpid()}/root{path}",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
        os.chown(tmp_path / name, of_link, -1, follow_symlinks=False)

    async def run() -> None:
        (await connect(str(tmp_path / named), socket.SOCK_STREAM)).close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(path, of_socket, -1)
        if connects and (named != "of-process" or of_link == 0):
            asyncio.run(run())
            listener.accept()[0].close()
            return
        listener.setblocking(False)
        with pytest.raises(ControlError) as refused:
            asyncio.run(run())
        if named != "of-process":
            assert refused.value.fault is Fault.NOT_A_SOCKET
        with pytest.raises(BlockingIOError):
            listener.accept()


@needs_root
@fault("a user's symbolic link among the sockets that a pattern finds")
@pytest.mark.parametrize("of_link", [0, NOBODY, OTHER])
def test_vm_is_not_taken_for_another_users_by_a_link_to_its_socket(
    tmp_path: Path, of_link: int
) -> None:
    path, link = tmp_path / "web.qmp", tmp_path / "link"
    link.symlink_to(path)
    os.lchown(link, of_link, of_link)

    async def run() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            os.chown(path, NOBODY, NOBODY)
            status = os.stat(path)
            ask = lookups.LOOKUPS.ask
            found = await Search([f"{tmp_path}/*.qmp"], ask, named=[str(link)]).run()
            if of_link == OTHER:
                # A configuration names a VM at the link: the VM that the pattern finds stays, and
                # a claim of the VM at the link is none of that VM.
                assert await socket_at(str(link), ask) == (str(link), None)
                assert list(found.found) == [str(path)]
            else:
                identity = (status.st_dev, status.st_ino)
                assert await socket_at(str(link), ask) == (str(path), identity)
                assert found.found == {}

    asyncio.run(run())


@fault("a user's symbolic link among the sockets that a pattern finds")
def test_socket_that_was_looked_at_is_connected_whatever_is_at_its_path_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "web.qmp"
    with contextlib.ExitStack() as stack:
        found, private, client = (
            stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)
        )
        for listener, at in ((found, path), (private, tmp_path / "private")):
            listener.bind(str(at))
            listener.listen()
            listener.setblocking(False)
        status = os.stat(path)
        really = os.fstat

        def replace(fd: int) -> os.stat_result:
            opened = really(fd)
            if stat.S_ISSOCK(opened.st_mode):
                path.unlink()
                path.symlink_to("private")
            return opened

        monkeypatch.setattr(os, "fstat", replace)
        identity = [status.st_dev, status.st_ino]
        order = ["connect", str(path), identity]
        said = list(path_orders.answers(order, client.fileno(), lambda owner: None))
        assert said == [status.st_uid]
        stack.enter_context(found.accept()[0])
        with pytest.raises(BlockingIOError):
            private.accept()


def test_names_of_any_bytes_are_found_by_a_child(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n.qmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / name))

        async def run() -> None:
            search = await Search([f"{tmp_path}/*.qmp"], lookups.LOOKUPS.ask).run()
            assert list(search.found) == [f"{tmp_path}/{name}"]
            assert stat.S_ISSOCK(os.stat(next(iter(search.found))).st_mode)

        asyncio.run(run())


@fault("a user makes sockets over and over")
@pytest.mark.parametrize("letter", ["a", "\x01", "é", "\U0001f600", os.fsdecode(b"\xff")])
def test_many_long_names_of_any_letters_come_in_packets_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    monkeypatch.setattr(path_orders, "LOOK_FOR_S", HANG_S)  # However fast names are looked at.
    n_bytes = len(os.fsencode(letter))
    directory = tmp_path.joinpath(*[letter * (250 // n_bytes)] * 6)
    directory.mkdir(parents=True)
    for number in range(300):
        (directory / f"{letter * (250 // n_bytes)}{number:03}").touch()
    order = ["match", str(directory), "*"]
    batches = list(path_orders.answers(order, -1, lambda owner: None))
    assert sum(len(batch) for batch in batches if isinstance(batch, list)) == 300
    assert max(len(json.dumps([batch])) for batch in batches) <= asked_child.MAX_PACKET_BYTES


@needs_root
def test_directory_that_others_cannot_hold_up_is_looked_at_without_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def ask(order: Sequence[object], take: lookups.Take, fd: int) -> None:
        asked.append(str(order[1]))
        with monkeypatch.context() as patch:
            # The directories of tests are below /tmp, where others may write.
            patch.setattr("balloon_daemon.linux.walked_path._OTHERS", 0)
            await lookups.ask_here(order, take, fd)

    for name in ("safe", "users", "users/vms"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1, 1))
    os.chown(tmp_path / "users", NOBODY, -1)
    os.utime(tmp_path, (1, 1))
    safe, absent, users = (str(tmp_path / name) for name in ("safe", "absent", "users/vms"))
    changed: list[set[str]] = []

    async def run() -> None:
        directories = Directories(changed.append, ask)
        directories.watch({safe, absent, users})
        directories.look()
        await asyncio.sleep(10)
        assert sorted(map(list, changed)) == [[safe], [users]]
        assert asked.count(users) > 5
        assert {asked.count(safe), asked.count(absent)} == {2}
        (tmp_path / "absent").mkdir()
        await asyncio.sleep(2)
        assert {absent} in changed
        directories.stop()

    run_quickly(run())


@fault("a user keeps those waiting who look names up")
def test_child_that_no_signal_ends_is_left_and_reaped_when_it_ends(mute: MuteDirectory) -> None:
    directory = os.path.dirname(mute.path)
    # The kernel looks up one name of this directory at a time; the next lookup waits for the
    # first in a way that no signal ends.
    first = os.fork()
    if first == 0:
        with contextlib.suppress(OSError):
            os.stat(f"{directory}/first")
        os._exit(0)
    wchan = Path(f"/proc/{first}/wchan")
    wait_until(lambda: "request_wait_answer" in wchan.read_text(), what="the first waits")

    async def run() -> None:
        looks = Lookups()
        for _ in range(2):
            with pytest.raises(ControlError) as late:
                await looks.ask(["connect", mute.path, None], lambda part: None)
            assert late.value.fault is Fault.PATH_HANGS
        (child,) = children()
        assert child.status() == psutil.STATUS_DISK_SLEEP
        found: list[object] = []
        await looks.ask(["identify", "/nowhere/web.qmp"], found.append)
        assert found == [["/nowhere/web.qmp", None]]
        assert not looks.close()
        assert child in children()
        mute.answer()
        wait_until(looks.close, what="it has ended")
        assert not child.is_running()
        assert looks.low is not None
        looks.low.close()

    asyncio.run(run())
    os.waitpid(first, 0)


@fault("a user keeps those waiting who look names up")
@pytest.mark.parametrize("kind", ["qmp", "firecracker", "crosvm"])
def test_vm_whose_socket_cannot_be_looked_up_holds_up_no_other(
    kind: str, mute: MuteDirectory, tmp_path: Path, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vm = ScriptedVm()
    vm.boot()
    with monitors_in_a_thread([ScriptedMonitor(tmp_path / "web", vm)]):
        file = tmp_path / "balloond.toml"
        file.write_text(f'[vm.hung]\n{kind} = "{mute.path}"\n[vm.web]\nqmp = "{tmp_path}/web"\n')
        daemon = start_daemon("--config", str(file), vm_mem_mib=None)
        hung = wait_for_fault(daemon, "hung")
        low_mem.set_low()
        daemon.wait(lambda: facts(daemon, "decided"), what="the other VM is squeezed")
        assert hung == "path-hangs"


def wait_for_fault(daemon: Daemon, name: str) -> str:
    def faults() -> list[str]:
        return [fact["fault"] for fact in facts(daemon, "vm-not-driven") if fact["name"] == name]

    return daemon.wait(faults, what=f"{name} is not driven")[0]


def test_search_pauses_so_that_many_names_cost_little_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        (tmp_path / str(number)).touch()
    pauses: list[float] = []
    monkeypatch.setattr(path_orders, "LOOK_FOR_S", 0.0)
    monkeypatch.setattr("time.sleep", pauses.append)
    batches = list(path_orders.answers(["match", str(tmp_path), "*"], -1, lambda owner: None))
    assert sum(len(batch) for batch in batches if isinstance(batch, list)) == 100
    assert pauses == [path_orders.PAUSE_S] * 100


@fault("a user keeps those waiting who look names up")
def test_directory_of_libvirts_process_ids_holds_up_no_event_loop(
    tmp_path: Path, mute: MuteDirectory
) -> None:
    (tmp_path / "qemu").symlink_to(os.path.dirname(mute.path))
    uri = f"qemu:///system?socket={tmp_path}/libvirt-sock"
    # Where the event loop itself looks the name up, this ends its wait, and no error is raised.
    late = threading.Timer(HANG_S, mute.answer)
    late.start()
    try:
        with pytest.raises(ControlError) as raised:
            asyncio.run(find_pid(uri, "web", "a" * 36))
    finally:
        late.cancel()
        late.join()
        mute.answer()
        wait_until(LOOKUPS.close, what="its children end")
    assert raised.value.fault is Fault.PATH_HANGS

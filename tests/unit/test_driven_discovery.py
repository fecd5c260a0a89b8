"""VMs that are found by patterns of their monitors' sockets."""

import asyncio
import glob
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.events import (
    DirectoryHangs,
    Event,
    Fault,
    SocketIgnored,
    VmDriven,
    VmNotDriven,
)
from balloon_daemon.guests.driven import discovery, path_orders
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.discovery import (
    MOST_OTHERS,
    NEW_A_SECOND,
    NEW_AT_ONCE,
    Search,
    Socket,
    is_matched,
    name_of,
)
from balloon_daemon.guests.driven.driver import (
    HANGING_LINES,
    HANGING_LINES_A_SECOND,
    DrivenVms,
    Wanted,
)
from balloon_daemon.guests.driven.lookups import Ask, Take, ask_here
from balloon_daemon.guests.seam import Guest, Report
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import VmId
from tests.fakes.quick_loop import run_quickly
from tests.fakes.scripted_control import ScriptedControl
from tests.harness.faults import fault
from tests.harness.needs import needs_root
from tests.harness.other_user import NOBODY


def search(patterns: list[str], known: Mapping[str, Socket] | None = None) -> Search:
    """A search that is over."""
    return asyncio.run(Search(patterns, ask_here, known).run())


def sockets(patterns: list[str]) -> dict[str, str]:
    """The paths of the sockets that are found."""
    return {resolved: found.path for resolved, found in search(patterns).found.items()}


OTHER = NOBODY - 1
Listen = Callable[[Path], None]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Makes sockets."""
    made: list[socket.socket] = []

    def listen(path: Path) -> None:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].bind(str(path))

    yield listen
    for sock in made:
        sock.close()


def test_socket_with_two_names_is_found_once_and_by_its_own(
    tmp_path: Path, listen: Listen
) -> None:
    listen(tmp_path / "b.qmp")
    for name in "ac":
        (tmp_path / f"{name}.qmp").symlink_to(tmp_path / "b.qmp")
    patterns = [f"{tmp_path}/a.*", f"{tmp_path}/*.qmp", f"{tmp_path}/b*"]
    assert sockets(patterns) == {f"{tmp_path}/b.qmp": f"{tmp_path}/b.qmp"}
    assert sockets(patterns[:1]) == {f"{tmp_path}/b.qmp": f"{tmp_path}/a.qmp"}


def test_patterns_match_as_globs_do(tmp_path: Path, listen: Listen) -> None:
    for name in ("a/x.qmp", "a/.y.qmp", "b/x.qmp", ".c/x.qmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        listen(tmp_path / name)
    tails = ("*/x.qmp", "[ab]/?.qmp", "*/*", "a/.*", ".*/*", "a/x.qmp", "nowhere/*", "a/none")
    for pattern in (f"{tmp_path}/{tail}" for tail in tails):
        assert sorted(sockets([pattern])) == sorted(glob.glob(pattern))


def test_search_among_many_names_is_made_a_little_at_a_time(
    tmp_path: Path, listen: Listen
) -> None:
    for number in range(2 * MOST_OTHERS):
        (tmp_path / f"{number}.qmp").touch()
    listen(tmp_path / "web.qmp")
    batches = 0

    async def ask(order: Sequence[object], take: Take, fd: int) -> None:
        def count(batch: object) -> None:
            nonlocal batches
            batches += 1
            take(batch)

        await ask_here(order, count, fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_orders, "LOOK_FOR_S", 0.0)
        patch.setattr(path_orders, "PAUSE_S", 0.0)
        found = asyncio.run(Search([f"{tmp_path}/*.qmp"], ask).run())
    assert batches > 2 * MOST_OTHERS
    assert list(found.found) == [f"{tmp_path}/web.qmp"]
    assert len(found.others) == MOST_OTHERS


def test_one_user_has_a_share_of_the_sockets_that_are_found(
    tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MOST_OF_ONE_USER", 2)
    for number in range(4):
        listen(tmp_path / f"{number}.qmp")
    found = sockets([f"{tmp_path}/*.qmp"])
    assert len(found) == 2
    last = next(path for path in map(str, tmp_path.iterdir()) if path not in found)
    assert last in search([f"{tmp_path}/*.qmp"], {last: Socket(last, (0, 0), 0)}).found


@fault("a user makes sockets over and over")
def test_socket_that_is_not_admitted_is_left_out_and_a_known_ones_successor_too(
    tmp_path: Path, listen: Listen
) -> None:
    for name in ("new", "known", "anew"):
        listen(tmp_path / f"{name}.qmp")
    patterns, asked = [f"{tmp_path}/*.qmp"], []
    known = search(patterns).found
    del known[f"{tmp_path}/new.qmp"]
    before = known[f"{tmp_path}/anew.qmp"] = Socket(f"{tmp_path}/anew.qmp", (0, 0), 7)

    def admits(user: int) -> bool:
        asked.append(user)
        return False

    found = asyncio.run(Search(patterns, ask_here, known, admits=admits).run())
    assert found.found == known
    assert found.found[f"{tmp_path}/anew.qmp"] == before
    assert found.left_out
    assert asked == [os.geteuid()] * 2


@needs_root
@fault("a user makes sockets over and over")
def test_users_new_sockets_are_looked_at_a_few_a_second(
    host: "Host", listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "NEW_AT_ONCE", 2)
    monkeypatch.setattr(discovery, "NEW_A_SECOND", 0.1)
    (host.path / "vms").mkdir()
    for number in range(5):
        listen(host.path / f"vms/{number}.qmp")
        os.chown(host.path / f"vms/{number}.qmp", NOBODY, -1)
        listen(host.path / f"vms/root{number}.qmp")
    counts: list[int] = []

    async def run() -> None:
        driver = host.driver()
        driver.start(host.registry)
        for seconds in (3, 57):
            await asyncio.sleep(seconds)
            users = [name for name in host.registry.names() if not name.startswith("root")]
            counts.append(len(users))
            assert len(host.registry.names()) - len(users) == 5
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())
    assert counts == [2, 5]


@needs_root
@fault("a user makes sockets over and over")
def test_users_sockets_are_not_tried_again_at_each_change_of_their_directory(
    host: "Host", listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "NEW_AT_ONCE", 2)
    monkeypatch.setattr(discovery, "NEW_A_SECOND", 0.01)
    (host.path / "vms").mkdir()
    for name in ("user", "root"):
        listen(host.path / f"vms/{name}.qmp")
    os.chown(host.path / "vms/user.qmp", NOBODY, -1)
    attempts = Counter[str]()

    def connect(path: str, identity: SocketId | None = None) -> ScriptedControl:
        attempts[Path(path).stem] += 1
        control = ScriptedControl()
        control.fails["open"] = ControlError(Fault.GONE)
        return control

    monkeypatch.setattr(host, "connect", connect)

    async def run() -> None:
        driver = host.driver()
        driver.start(host.registry)
        for number in range(60):
            (host.path / f"vms/{number}").touch()
            await asyncio.sleep(1)
        driver.stop(leaving=False)

    run_quickly(run())
    # By itself it is tried after 1, 2, 4 … 30 s.
    assert attempts["user"] < 12
    assert attempts["root"] > 40


def test_share_of_a_user_is_that_users_alone_and_comes_back() -> None:
    shares = discovery.UserShares()
    assert [shares.admits(1, 0.0) for _ in range(NEW_AT_ONCE + 1)] == [True] * NEW_AT_ONCE + [
        False
    ]
    assert shares.admits(2, 0.0)
    assert shares.admits(1, 0.0, again=True)
    assert not shares.admits(1, 0.9 / NEW_A_SECOND)
    assert shares.admits(1, 1.9 / NEW_A_SECOND)
    assert all(shares.admits(0, 0.0) for _ in range(2 * NEW_AT_ONCE))


@needs_root
@fault("a user's symbolic link among the sockets that a pattern finds")
@pytest.mark.parametrize(
    ("of_link", "of_socket", "found"),
    [
        (NOBODY, 0, False),
        (NOBODY, OTHER, False),
        (NOBODY, NOBODY, True),
        (0, 0, True),
        (0, NOBODY, True),
    ],
)
def test_link_is_followed_if_root_or_the_sockets_owner_made_it(
    tmp_path: Path, listen: Listen, of_link: int, of_socket: int, found: bool
) -> None:
    for name in ("vms", "private"):
        (tmp_path / name).mkdir(mode=0o700)
    listen(tmp_path / "private/monitor")
    os.chown(tmp_path / "private/monitor", of_socket, -1)
    link = tmp_path / "vms/web.qmp"
    link.symlink_to(tmp_path / "private/monitor")
    os.chown(link, of_link, -1, follow_symlinks=False)
    expected = {f"{tmp_path}/private/monitor": str(link)} if found else {}
    assert sockets([f"{tmp_path}/vms/*.qmp"]) == expected


@needs_root
@fault("a user's symbolic link among the sockets that a pattern finds")
@pytest.mark.parametrize("pattern", ["users/*/web.qmp", "users/x/*.qmp", "users/*/*.qmp"])
def test_users_link_in_place_of_a_directory_is_not_followed(
    tmp_path: Path, listen: Listen, pattern: str
) -> None:
    for name in ("users", "private"):
        (tmp_path / name).mkdir(mode=0o700)
    listen(tmp_path / "private/web.qmp")
    link = tmp_path / "users/x"
    link.symlink_to(tmp_path / "private")
    assert len(sockets([f"{tmp_path}/{pattern}"])) == 1
    os.chown(link, NOBODY, -1, follow_symlinks=False)
    assert sockets([f"{tmp_path}/{pattern}"]) == {}


def test_directories_of_one_user_are_bounded(
    tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MOST_OF_ONE_USER", 2)
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        listen(tmp_path / f"{number}/qmp.sock")
    pattern = f"{tmp_path}/*/qmp.sock"
    first = search([pattern])
    assert len(first.directories) == 3
    left = next(str(each) for each in tmp_path.iterdir() if str(each) not in first.directories)
    known = {f"{left}/qmp.sock": Socket(f"{left}/qmp.sock", (0, 0), 0)}
    assert left in search([pattern], known).directories


def test_what_was_found_in_a_directory_that_hangs_stays_found(tmp_path: Path) -> None:
    async def ask(order: Sequence[object], take: Take, fd: int) -> None:
        raise ControlError(Fault.PATH_HANGS)

    known = {f"{tmp_path}/a/web.qmp": Socket(f"{tmp_path}/a/web.qmp", (1, 2), 0)}
    for pattern in ("a/*.qmp", "*/web.qmp"):
        found = asyncio.run(Search([f"{tmp_path}/{pattern}"], ask, known).run())
        assert found.found == known


def calls_in_discovery(work: Callable[[], object]) -> int:
    """How many calls of the module's functions, and steps of its generators, some work takes."""
    calls = 0

    def count(frame: FrameType, what: str, _: object) -> None:
        nonlocal calls
        calls += what == "call" and frame.f_code.co_filename == discovery.__file__

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@fault("a user makes sockets over and over")
def test_directory_that_matches_is_not_compared_with_each_socket_that_is_known() -> None:
    known = {f"/vms/{n}/qmp.sock": Socket(f"/vms/{n}/qmp.sock", (1, n), 1003) for n in range(500)}
    matches = [(f"/vms/{n}", f"/vms/{n}", 0o40755, 1003, (1, 1000 + n)) for n in range(1000, 1500)]

    async def ask(order: Sequence[object], take: Take, fd: int) -> None:
        if order[1:] == ["/vms", "*"]:
            take(matches)

    search = Search(["/vms/*/qmp.sock"], ask, known)
    calls = calls_in_discovery(lambda: asyncio.run(search.run()))
    assert len(search.directories) == 1 + len(matches)
    assert calls < 10 * (len(known) + len(matches))


@fault("a user keeps those waiting who look names up")
def test_socket_that_is_known_is_not_compared_with_each_directory_that_hangs() -> None:
    known = {f"/vms/{n}/qmp.sock": Socket(f"/vms/{n}/qmp.sock", (1, n), 1003) for n in range(500)}

    async def ask(order: Sequence[object], take: Take, fd: int) -> None:
        if order[1:] != ["/vms", "*"]:
            raise ControlError(Fault.PATH_HANGS)
        take([(f"/vms/{n}", f"/vms/{n}", 0o40755, 1003, (1, 1000 + n)) for n in range(500)])

    search = Search(["/vms/*/qmp.sock"], ask, known)
    calls = calls_in_discovery(lambda: asyncio.run(search.run()))
    assert len(search.unseen) == len(known)
    assert search.found == known
    assert calls < 10 * len(known)


def test_file_that_is_no_socket_is_told_apart(tmp_path: Path, listen: Listen) -> None:
    (tmp_path / "file.qmp").touch()
    (tmp_path / "directory.qmp").mkdir()
    os.mkfifo(tmp_path / "fifo.qmp")
    (tmp_path / "dangling.qmp").symlink_to("nowhere")
    listen(tmp_path / "web.qmp")
    found = search([f"{tmp_path}/*.qmp"])
    assert list(found.found) == [f"{tmp_path}/web.qmp"]
    assert found.others == {f"{tmp_path}/{name}.qmp" for name in ("file", "directory", "fifo")}


def test_directories_of_a_pattern_are_all_that_a_new_match_may_be_made_in(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert search([f"{tmp_path}/*.qmp"]).directories == {str(tmp_path)}
    assert search([f"{tmp_path}/*/qmp.sock"]).directories == {
        str(tmp_path),
        f"{tmp_path}/a",
        f"{tmp_path}/b",
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/run/qemu/web.qmp", "web"),
        ("/run/qemu/web", "web"),
        ("/run/qemu/db.qmp", "/run/qemu/db.qmp"),
        ("/run/qemu/.qmp", ".qmp"),
    ],
)
def test_name_is_the_files_without_its_ending_unless_it_is_taken(path: str, name: str) -> None:
    assert name_of(path, {"db"}) == name


class Registry:
    """A ``VmRegistry``."""

    def __init__(self) -> None:
        self.vms: list[VmId] = []
        self.changes: list[tuple[str, VmSettings]] = []
        self.dismissed: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def next_vm(self, name: str = "") -> VmId:
        return VmId(len(self.vms) + 1, name)

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        self.vms.append(guest.vm)

    def report(self, vm: VmId, report: Report) -> None:
        pass

    def serve(self, guest: Guest) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(guest.serve()))

    def change(self, vm: VmId, settings: VmSettings) -> None:
        self.changes.append((vm.name, settings))

    def dismiss(self, vm: VmId) -> None:
        self.dismissed.append(vm.name)

    def names(self) -> list[str]:
        return sorted(vm.name for vm in self.vms)


class Host:
    """VMs in a directory, and a driver that finds them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.registry = Registry()
        self.controls: dict[str, ScriptedControl] = {}
        self.identities: list[SocketId | None] = []

    def connect(self, path: str, identity: SocketId | None = None) -> ScriptedControl:
        """A VMM whose socket is there, or none."""
        self.identities.append(identity)
        control = self.controls[path] = ScriptedControl()
        if not os.path.exists(path):
            control.fails["open"] = ControlError(Fault.NOT_THERE)
        return control

    def driver(
        self, *named: VmConfig, taken: frozenset[str] = frozenset(), ask: Ask = ask_here
    ) -> DrivenVms:
        """A driver for the named VMs and for all that the directory has."""
        wanted = self.wanted(*named, patterns=[f"{self.path}/vms/*.qmp"], taken=taken)
        return DrivenVms(wanted, self.events.append, ask=ask)

    def wanted(
        self, *named: VmConfig, patterns: Sequence[str] = (), taken: frozenset[str] = frozenset()
    ) -> Wanted:
        """Which VMs are to be driven."""
        bases = self.path / "bases"
        taken |= {vm.name for vm in named}
        return Wanted(named, tuple(patterns), {Kind.QMP: self.connect}, bases, taken)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_vms_are_found_as_they_come_and_go(host: Host, listen: Listen) -> None:
    async def run() -> None:
        driver = host.driver()
        driver.start(host.registry)
        await asyncio.sleep(60)
        (host.path / "vms").mkdir()
        listen(host.path / "vms/web.qmp")
        await asyncio.sleep(2)
        assert host.registry.names() == ["web"]
        listen(host.path / "vms/db.qmp")
        await asyncio.sleep(2)
        assert host.registry.names() == ["db", "web"]
        (host.path / "vms/web.qmp").unlink()
        await asyncio.sleep(2)
        web = host.controls[f"{host.path}/vms/web.qmp"]
        web.end()
        await asyncio.sleep(600)
        assert host.registry.names() == ["db", "web"]
        assert host.controls[f"{host.path}/vms/web.qmp"] is web
        driver.stop(leaving=False)
        await driver.close(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())


def test_discovered_vm_takes_no_name_that_another_vm_has(host: Host, listen: Listen) -> None:
    (host.path / "vms").mkdir()
    for name in ("web", "db"):
        listen(host.path / f"vms/{name}.qmp")

    async def run() -> None:
        driver = host.driver(taken=frozenset(["web"]))
        driver.start(host.registry)
        await asyncio.sleep(60)
        assert host.registry.names() == [f"{host.path}/vms/web.qmp", "db"]
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())


def test_named_vm_is_not_found_once_more(host: Host, listen: Listen) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "vms/web.qmp")
    (host.path / "web").symlink_to(host.path / "vms/web.qmp")
    settings = VmSettings(priority=1)

    async def run() -> None:
        driver = host.driver(VmConfig("mine", Kind.QMP, f"{host.path}/web", settings))
        driver.start(host.registry)
        await asyncio.sleep(60)
        assert host.registry.names() == ["mine"]
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())


def changed(host: Host, named: Sequence[VmConfig], *wanted: Wanted) -> None:
    """Drives the named VMs and all of the directory, then those that are wanted, in turn."""

    async def run() -> None:
        driver = host.driver(*named)
        driver.start(host.registry)
        await asyncio.sleep(60)
        for each in wanted:
            driver.change(each)
            await asyncio.sleep(60)
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())


def test_vm_that_a_pattern_has_found_goes_on_by_the_settings_of_its_name(
    host: Host, listen: Listen
) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "vms/web.qmp")
    path = f"{host.path}/vms/web.qmp"
    settings, patterns = VmSettings(priority=1), [f"{host.path}/vms/*.qmp"]
    web = VmConfig("web", Kind.QMP, path, settings)

    changed(host, [], host.wanted(web, patterns=patterns), host.wanted(patterns=patterns))

    assert host.registry.names() == ["web"]
    assert host.registry.changes == [("web", settings), ("web", VmSettings())]
    assert host.registry.dismissed == []


def test_discovered_vms_have_the_profile_of_those_that_name_none(
    host: Host, listen: Listen
) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "vms/web.qmp")
    adaptive = VmSettings(profile=Profile.ADAPTIVE)
    wanted = host.wanted(patterns=[f"{host.path}/vms/*.qmp"])

    changed(host, [], wanted, replace(wanted, found=adaptive), replace(wanted, found=adaptive))
    assert host.registry.changes == [("web", adaptive)]
    assert (host.registry.names(), host.registry.dismissed) == (["web"], [])


def test_vm_that_was_named_by_a_link_goes_on_where_a_pattern_finds_it(
    host: Host, listen: Listen
) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "web")
    (host.path / "vms/web.qmp").symlink_to(host.path / "web")
    web = VmConfig("web", Kind.QMP, f"{host.path}/vms/web.qmp", VmSettings())

    changed(host, [web], host.wanted(patterns=[f"{host.path}/vms/*.qmp"]))

    assert (host.registry.names(), host.registry.dismissed) == (["web"], [])
    assert all(path == web.address for path in host.controls)


def test_vm_that_is_named_otherwise_now_is_let_go_and_found_by_its_new_name(
    host: Host, listen: Listen
) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "vms/web.qmp")
    (host.path / "link").symlink_to(host.path / "vms/web.qmp")
    shop = VmConfig("shop", Kind.QMP, f"{host.path}/link", VmSettings())

    changed(host, [], host.wanted(shop, patterns=[f"{host.path}/vms/*.qmp"]))

    assert host.registry.dismissed == ["web"]
    # This registry lets nobody go, so that the VM is driven by its first name still.
    assert {event.name for event in host.events if isinstance(event, VmNotDriven)} == {"shop"}


def test_vms_of_a_pattern_that_is_there_no_more_are_let_go_and_others_found(
    host: Host, listen: Listen
) -> None:
    for name in ("vms", "more"):
        (host.path / name).mkdir()
        listen(host.path / f"{name}/{name}.qmp")

    changed(host, [], host.wanted(patterns=[f"{host.path}/more/*.qmp"]), host.wanted())

    assert host.registry.names() == ["more", "vms"]
    assert host.registry.dismissed == ["vms", "more"]


def test_name_that_a_configuration_takes_is_taken_from_a_vm_that_was_found(
    host: Host, listen: Listen
) -> None:
    (host.path / "vms").mkdir()
    for path in ("vms/web.qmp", "other"):
        listen(host.path / path)
    web = VmConfig("web", Kind.QMP, f"{host.path}/other", VmSettings())

    changed(host, [], host.wanted(web, patterns=[f"{host.path}/vms/*.qmp"]))

    assert host.registry.dismissed == ["web"]
    assert host.registry.names().count("web") == 2


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        ("/run/vms/web.qmp", True),
        ("/run/vms/.web.qmp", False),
        ("/run/vms/a/web.qmp", False),
        ("/run/vms/web.sock", False),
        ("/run/a/qmp", True),
        ("/run/.a/qmp", False),
    ],
)
def test_path_matches_a_pattern_as_a_search_would_find_it(path: str, matches: bool) -> None:
    assert is_matched(path, ["/run/vms/*.qmp", "/run/*/qmp"]) is matches


def test_vm_that_was_started_anew_is_met_by_its_new_socket(host: Host, listen: Listen) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "vms/web.qmp")
    path = f"{host.path}/vms/web.qmp"

    async def run() -> None:
        driver = host.driver()
        driver.start(host.registry)
        await asyncio.sleep(5)
        first = os.stat(path)
        os.rename(path, host.path / "old")  # So that its inode is not used again.
        listen(host.path / "vms/web.qmp")
        host.controls[path].end()
        await asyncio.sleep(60)
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()
        second = os.stat(path)
        assert host.identities[0] == (first.st_dev, first.st_ino)
        assert host.identities[-1] == (second.st_dev, second.st_ino)

    run_quickly(run())
    assert host.registry.names() == ["web", "web"]


@fault("a user keeps those waiting who look names up")
def test_directory_that_hangs_is_named_once_and_searched_until_it_can_be_seen(
    host: Host, listen: Listen
) -> None:
    (host.path / "vms").mkdir()
    listen(host.path / "vms/web.qmp")
    hangs = True

    async def ask(order: Sequence[object], take: Take, fd: int) -> None:
        if hangs and order[0] == "match":
            raise ControlError(Fault.PATH_HANGS)
        await ask_here(order, take, fd)

    async def run() -> None:
        nonlocal hangs
        driver = host.driver(ask=ask)
        driver.start(host.registry)
        await asyncio.sleep(600)
        assert host.events == [DirectoryHangs(f"{host.path}/vms")]
        hangs = False
        await asyncio.sleep(30)
        assert host.registry.names() == ["web"]
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())


def test_directories_that_hang_in_turn_have_few_lines(host: Host) -> None:
    (host.path / "vms").mkdir()
    searches = 0

    async def ask(order: Sequence[object], take: Take, fd: int) -> None:
        nonlocal searches
        if order[0] == "match":
            searches += 1
            if searches % 2:
                raise ControlError(Fault.PATH_HANGS)
        elif order[0] == "watch":
            take([searches, ""])  # It has changed.
        else:
            await ask_here(order, take, fd)

    async def run() -> None:
        driver = host.driver(ask=ask)
        driver.start(host.registry)
        await asyncio.sleep(300)
        driver.stop(leaving=False)

    run_quickly(run())
    assert searches > 100
    assert HANGING_LINES <= len(host.events) <= HANGING_LINES + 300 * HANGING_LINES_A_SECOND


def test_named_vm_is_found_as_soon_as_its_socket_appears(host: Host, listen: Listen) -> None:
    async def run() -> None:
        web = VmConfig("web", Kind.QMP, f"{host.path}/elsewhere/web", VmSettings())
        driver = host.driver(web)
        driver.start(host.registry)
        await asyncio.sleep(600)
        assert [type(event) for event in host.events if not getattr(event, "quiet", False)] == [
            VmNotDriven
        ]
        (host.path / "elsewhere").mkdir()
        listen(host.path / "elsewhere/web")
        await asyncio.sleep(3)
        assert host.registry.names() == ["web"]
        assert isinstance(host.events[-1], VmDriven)
        driver.stop(leaving=False)
        for task in host.registry.tasks:
            task.cancel()

    run_quickly(run())


def test_file_that_is_no_socket_is_said_once(host: Host) -> None:
    (host.path / "vms").mkdir()
    (host.path / "vms/notes.qmp").touch()

    async def run() -> None:
        driver = host.driver()
        driver.start(host.registry)
        for number in range(5):
            (host.path / f"vms/{number}").touch()
            await asyncio.sleep(2)
        driver.stop(leaving=False)

    run_quickly(run())
    assert host.events == [SocketIgnored(f"{host.path}/vms/notes.qmp")]

"""The balloons that were there before balloond, in a file that may be lost or full of anything."""

import contextlib
import json
import os
import resource
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.config.vms import Kind
from balloon_daemon.events import BasesNotStored, BasesPathTaken, Event
from balloon_daemon.guests.driven.bases import (
    AGAIN_AFTER_S,
    MOST_LETTERS,
    BaseKey,
    Bases,
    Place,
    base_keys,
)
from balloon_daemon.units import GIB, MOST_MEMORY_BYTES
from tests.harness.faults import fault
from tests.harness.other_user import NOBODY

WEB = BaseKey("web", 100, 2000)
PID_MAX_LIMIT = 1 << 22  # linux/threads.h


@pytest.fixture
def events() -> list[Event]:
    return []


def test_base_is_there_for_the_next_balloond(tmp_path: Path, events: list[Event]) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    assert bases.get(WEB) is None
    bases.note(WEB, GIB)
    bases.note(WEB._replace(name="db"), 0)
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    assert (again.get(WEB), again.get(WEB._replace(name="db"))) == (GIB, 0)
    assert os.listdir(tmp_path) == ["bases"]
    assert events == []


@fault("a driven VM ends, and another process")
@pytest.mark.parametrize("other", [{"name": "db"}, {"pid": 101}, {"start_time": 2001}])
def test_base_is_one_processs(
    tmp_path: Path, events: list[Event], other: dict[str, object]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    assert bases.get(BaseKey(**{**WEB._asdict(), **other})) is None


NEXT = WEB._replace(pid=200, start_time=3000)
"""The same VM in the VMM's next process."""


@fault("two VMs have one name")
@pytest.mark.parametrize("restored", [True, False])
def test_base_of_a_vm_that_is_driven_stays_its_own_when_another_comes_by_its_name(
    tmp_path: Path, events: list[Event], restored: bool
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.hold(WEB, NOBODY)
    bases.note(WEB, GIB)
    bases.move(NEXT, NOBODY, restored=restored)
    assert (bases.get(WEB), bases.get(NEXT)) == (GIB, None)


@fault("two VMs have one name")
@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("user", [NOBODY, -1])
def test_base_of_a_vm_that_is_not_found_yet_is_no_other_users(
    tmp_path: Path, events: list[Event], user: int, restored: bool
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.hold(WEB, 0)
    bases.note(WEB, GIB)
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    again.move(NEXT, user, restored=restored)
    assert (again.get(WEB), again.get(NEXT)) == (GIB, None)
    again.move(NEXT, 0, restored=True)
    assert (again.get(WEB), again.get(NEXT)) == (None, GIB)


@pytest.mark.parametrize(("restored", "base_bytes"), [(True, GIB), (False, None)])
def test_base_is_the_next_processs_only_of_a_vm_that_was_restored(
    tmp_path: Path, events: list[Event], restored: bool, base_bytes: int | None
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    bases.note(WEB._replace(name="db"), 0)
    bases.move(NEXT, NOBODY, restored=restored)
    bases.move(NEXT, NOBODY, restored=restored)  # By another connection to the same process.
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    assert (again.get(NEXT), again.get(WEB)) == (base_bytes, None)
    assert again.get(WEB._replace(name="db")) == 0


def test_base_of_a_restored_vm_is_the_last_of_its_processes(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    bases.note(WEB._replace(pid=101), 2 * GIB)
    bases.move(NEXT, NOBODY, restored=True)
    assert bases.get(NEXT) == 2 * GIB


def test_restored_vm_of_which_nothing_was_taken_has_no_base(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.move(NEXT, NOBODY, restored=True)
    assert bases.get(NEXT) is None


def test_base_that_was_given_back_to_is_forgotten(tmp_path: Path, events: list[Event]) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    bases.store()
    bases.forget(WEB)
    bases.store()
    assert os.listdir(tmp_path) == []
    assert Bases(tmp_path / "bases", events.append).get(WEB) is None


ROW = ["web", 100, 2000, GIB]


@fault("the file of what was there before balloond")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps({"version": 2, "bases": [ROW]}),
        json.dumps({"version": 1}),
        json.dumps({"version": 1, "bases": [ROW, 1]}),
        json.dumps({"version": 1, "bases": [ROW, ROW[:3]]}),
        json.dumps({"version": 1, "bases": [ROW, ["db", 100, 2000, -1]]}),
        json.dumps({"version": 1, "bases": [ROW, ["db", 100, 2000, 1 << 60]]}),
        json.dumps({"version": 1, "bases": [ROW, ["db", 100, 2000, True]]}),
        json.dumps({"version": 1, "bases": [ROW, ["db", 100.0, 2000, 1]]}),
        json.dumps({"version": 1, "bases": [ROW, [None, 100, 2000, 1]]}),
        json.dumps({"version": 1, "bases": [ROW]}) + " " * (1 << 23),
        "\udcff",
    ],
)
def test_file_that_is_wrong_anywhere_has_no_entries(
    tmp_path: Path, events: list[Event], content: str
) -> None:
    path = tmp_path / "bases"
    path.write_text(content, errors="surrogateescape")
    bases = Bases(path, events.append)
    assert bases.get(WEB) is None
    bases.note(WEB, GIB)
    bases.store()
    assert Bases(path, events.append).get(WEB) == GIB
    assert events == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_path_that_is_no_file_has_no_entries(
    tmp_path: Path, events: list[Event], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "bases")
    assert Bases(tmp_path / "bases", events.append).get(WEB) is None


@fault("something else than a file is where")
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("elsewhere", path), lambda path: bind(path)],
    ids=["fifo", "directory", "link", "socket"],
)
def test_what_is_no_file_is_left_alone_and_named_once(
    tmp_path: Path, events: list[Event], make: Callable[[Path], None]
) -> None:
    path = tmp_path / "bases"
    make(path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    bases = Bases(path, events.append)
    for base_bytes in (GIB, 2 * GIB):
        bases.note(WEB, base_bytes)
        bases.store()
    bases.forget(WEB)
    bases.store()
    assert stat.S_IFMT(path.lstat().st_mode) == kind
    assert os.listdir(tmp_path) == ["bases"]
    assert events == [BasesPathTaken(str(path))]
    path.rmdir() if stat.S_ISDIR(kind) else path.unlink()
    bases.note(WEB, GIB)
    bases.store()
    assert Bases(path, events.append).get(WEB) == GIB


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@fault("the file of what was there before balloond")
def test_file_that_cannot_be_written_is_published_once(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "missing" / "bases", events.append)
    for base_bytes in (1, 2):
        bases.note(WEB, base_bytes)
        bases.store()
    assert events == [BasesNotStored("No such file or directory")]
    (tmp_path / "missing").mkdir()
    bases.note(WEB, GIB)
    bases.store()
    assert Bases(tmp_path / "missing" / "bases", events.append).get(WEB) == GIB


@fault("the file of what was there before balloond")
@pytest.mark.parametrize(("last", "again_at_s"), [(False, AGAIN_AFTER_S), (True, 2.0)])
def test_file_that_could_not_be_written_is_written_later_without_a_change(
    tmp_path: Path, events: list[Event], last: bool, again_at_s: float
) -> None:
    now_s = [0.0]
    path = tmp_path / "missing" / "bases"
    bases = Bases(path, events.append, lambda: now_s[0])
    bases.note(WEB, GIB)
    bases.store()
    path.parent.mkdir()
    now_s[0] = 1.0
    bases.store()  # As each VM that gets a target does; the next try is not due yet.
    assert not path.exists()
    now_s[0] = again_at_s
    bases.store(last=last)
    assert Bases(path, events.append).get(WEB) == GIB
    # Now that it is written, nothing is written without a change.
    path.unlink()
    now_s[0] = 100.0
    bases.store(last=True)
    assert not path.exists()
    assert events == [BasesNotStored("No such file or directory")]


@fault("the file of what was there before balloond")
def test_file_for_which_there_is_no_room_leaves_no_part_and_keeps_the_one_before(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    bases.store()
    bases.note(WEB, 2 * GIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        bases.store()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert events == [BasesNotStored("File too large")]
    assert os.listdir(tmp_path) == ["bases"]
    assert Bases(tmp_path / "bases", events.append).get(WEB) == GIB


def test_link_in_the_new_files_place_is_not_followed(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "bases.new").symlink_to(tmp_path / "theirs")
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    bases.store()
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert Bases(tmp_path / "bases", events.append).get(WEB) == GIB


def test_number_of_entries_is_bounded_and_those_of_ended_vms_are_dropped_first(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    with process() as pid:
        living = WEB._replace(pid=pid)
        bases.note(living, GIB)
        note_ended(bases, range(4096))
        assert bases.get(living) == GIB
    # So many are dropped at once.
    assert bases.get(ended(256)) is None
    assert bases.get(ended(257)) == GIB


@fault("more than 4,096 VMs that have a balloon already")
def test_entry_of_a_vm_that_is_driven_is_never_dropped(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    driven = ended(10_000)
    bases.note(driven, GIB)
    bases.hold(driven)
    bases.hold(driven)
    bases.release(driven)
    note_ended(bases, range(5000))
    assert bases.get(driven) == GIB
    bases.release(driven)
    note_ended(bases, range(5000, 10_000))
    assert bases.get(driven) is None


@fault("more than 4,096 VMs that have a balloon already")
@pytest.mark.parametrize("has_pid", [True, False])
def test_of_living_vms_that_are_not_driven_the_user_with_most_loses_entries(
    tmp_path: Path, events: list[Event], has_pid: bool
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    with process(NOBODY) as theirs, process() as ours:
        neighbours = WEB._replace(pid=theirs)
        note_driven(bases, neighbours, NOBODY)
        bases.store()
        bases = Bases(tmp_path / "bases", events.append)  # The next balloond knows the user, too.
        for number in range(5000):
            note_driven(bases, BaseKey(f"vm{number}", ours if has_pid else 0, 1), 0)
        assert bases.get(neighbours) == GIB
        assert bases.get(BaseKey("vm0", ours if has_pid else 0, 1)) is None


def test_most_entries_with_the_longest_names_are_read_again(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    # Four bytes a letter as the name of a file, and twelve as JSON.
    keys = [
        base_keys(f"{number:04}" + "\U0010ffff" * 1023, None, "", 1 << 22, 1 << 63, saves=False)[0]
        for number in range(4096)
    ]
    for key in keys:
        bases.note(key, MOST_MEMORY_BYTES)
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    assert [again.get(key) for key in keys] == [MOST_MEMORY_BYTES] * len(keys)


UUID = "5a3d"


@pytest.mark.parametrize(
    ("known", "names"),
    [
        ({"saves": True}, [UUID, "7:11", "web"]),
        ({"saves": False}, [UUID, "7:11", "web"]),
        ({"saves": False, "vm_uuid": ""}, ["7:11", "web"]),
        ({"saves": True, "socket": None}, [UUID, "web"]),
        ({"saves": False, "vm_uuid": "", "socket": None}, ["web"]),
    ],
)
def test_key_has_the_uuid_or_the_socket_and_no_name_unless_neither_is_known(
    known: dict[str, Any], names: list[str]
) -> None:
    vm: dict[str, Any] = {
        "name": "web",
        "socket": (7, 11),
        "vm_uuid": UUID,
        "pid": 100,
        "start_time": 2000,
    }
    keys = base_keys(**(vm | known))
    unknown = [BaseKey(name, 0, 0) for name in names if name != "web"]
    assert keys == [BaseKey(name, 100, 2000) for name in names] + unknown


@pytest.mark.parametrize(("saves", "name"), [(True, UUID), (False, "7:11")])
def test_uuid_of_a_vm_whose_process_is_not_known_counts_only_where_its_vmm_saves_vms(
    saves: bool, name: str
) -> None:
    assert base_keys("web", (7, 11), UUID, 0, 0, saves=saves)[0] == BaseKey(name, 0, 0)


def test_key_is_short() -> None:
    key, *_ = base_keys("x" * 2 * MOST_LETTERS, None, "", 100, 2000, saves=False)
    assert key == BaseKey("x" * MOST_LETTERS, 100, 2000)


def test_base_that_was_noted_while_the_process_was_not_known_is_known(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(BaseKey("7:11", 0, 0), GIB)
    key, *earlier = base_keys("web", (7, 11), UUID, 100, 2000, saves=False)
    assert bases.know(key, earlier) == BaseKey("7:11", 0, 0)
    assert bases.know(key, earlier) == key
    assert bases.get(key) == GIB


def test_file_is_written_once_a_second_for_entries_that_change_one_after_another(
    tmp_path: Path, events: list[Event]
) -> None:
    now_s = 0.0
    bases = Bases(tmp_path / "bases", events.append, lambda: now_s)
    for number, now_s in enumerate((0.0, 0.5, 1.0)):
        bases.note(BaseKey(f"web{number}", 0, 0), GIB)
        bases.store_soon()
        again = Bases(tmp_path / "bases", events.append)
        stored = [again.get(BaseKey(f"web{each}", 0, 0)) is not None for each in range(3)]
        assert stored == [True, now_s >= 1.0, now_s >= 1.0]


PLACE = Place(Kind.QMP, "web", "/run/web.qmp")


def test_place_of_a_vm_is_known_to_the_next_balloond_while_its_process_is_there(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    here, gone, unknown = WEB._replace(pid=os.getpid()), ended(1), WEB._replace(pid=0)
    for key in (here, gone, unknown):
        bases.note(key, GIB)
        bases.reached(key, PLACE._replace(name=str(key.pid)))
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    assert [place.name for place in again.places()] == [str(os.getpid()), "0"]
    again.forget(here)
    assert [place.name for place in again.places()] == ["0"]


def test_place_of_an_entry_of_an_earlier_version_is_stored_soon(
    tmp_path: Path, events: list[Event]
) -> None:
    key = WEB._replace(pid=0)
    (tmp_path / "bases").write_text(json.dumps({"version": 1, "bases": [[*key, GIB]]}))
    bases = Bases(tmp_path / "bases", events.append)
    bases.reached(key, PLACE)
    bases.store_soon()
    assert Bases(tmp_path / "bases", events.append).places() == [PLACE]


def test_long_place_is_not_stored(tmp_path: Path, events: list[Event]) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    key = WEB._replace(pid=0)
    bases.note(key, GIB)
    bases.reached(key, PLACE._replace(address="/run/" + "\U0010ffff" * 43))
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    assert (again.get(key), again.places()) == (GIB, [])


@pytest.mark.parametrize(
    "places", [[["qmp", "web"]], [["xen", "web", "/"]], [[1, 2, 3]], [], None, 7, "qmp"]
)
def test_file_with_odd_places_has_none(
    tmp_path: Path, events: list[Event], places: object
) -> None:
    content = {"version": 1, "bases": [[*WEB._replace(pid=0), GIB]], "places": places}
    (tmp_path / "bases").write_text(json.dumps(content))
    assert Bases(tmp_path / "bases", events.append).places() == []


def two_files(path: Path, publish: Callable[[Event], None]) -> tuple[Bases, Bases]:
    """The bases of VMs with a socket, and those of libvirt's domains."""
    one, other = Bases(path / "bases", publish), Bases(path / "libvirt-bases", publish)
    one.others, other.others = [other], [one]
    return one, other


@fault("one VM is named twice")
def test_base_of_a_vm_that_another_kind_of_control_has_driven_is_known(
    tmp_path: Path, events: list[Event]
) -> None:
    one, other = two_files(tmp_path, events.append)
    other.note(WEB, GIB)
    other.store()
    assert one.know(WEB, []) == WEB
    assert (one.get(WEB), other.get(WEB)) == (GIB, None)
    one, other = two_files(tmp_path, events.append)
    assert (one.get(WEB), other.get(WEB)) == (GIB, None)


def test_base_that_is_held_elsewhere_or_of_no_known_process_stays_there(
    tmp_path: Path, events: list[Event]
) -> None:
    one, other = two_files(tmp_path, events.append)
    unknown = BaseKey("5a3d", 0, 0)
    other.note(unknown, GIB)
    other.note(WEB, GIB)
    other.hold(WEB, NOBODY)
    for key in (WEB, unknown):
        one.know(key, [])
        assert (one.get(key), other.get(key)) == (None, GIB)


OF_SOCKET = WEB._replace(name="7:11")
"""The same VM, by its socket."""


def test_base_that_an_earlier_version_has_noted_by_the_vms_name_is_known(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.note(WEB, GIB)
    bases.know(OF_SOCKET._replace(pid=101), [WEB._replace(pid=101)])
    bases.know(OF_SOCKET, [WEB._replace(name="db")])
    assert bases.get(WEB) == GIB
    bases.know(OF_SOCKET, [WEB])
    bases.store()
    again = Bases(tmp_path / "bases", events.append)
    assert (again.get(WEB), again.get(OF_SOCKET)) == (None, GIB)


def test_base_of_a_vm_that_is_driven_or_known_stays_as_it_is(
    tmp_path: Path, events: list[Event]
) -> None:
    bases = Bases(tmp_path / "bases", events.append)
    bases.hold(WEB, NOBODY)
    bases.note(WEB, GIB)
    bases.know(OF_SOCKET, [WEB])
    assert (bases.get(WEB), bases.get(OF_SOCKET)) == (GIB, None)
    bases.release(WEB)
    bases.note(OF_SOCKET, 0)
    bases.know(OF_SOCKET, [WEB])
    assert (bases.get(WEB), bases.get(OF_SOCKET)) == (GIB, 0)


def ended(number: int) -> BaseKey:
    """A VM whose VMM's process is gone: the kernel gives out no such number."""
    return WEB._replace(pid=PID_MAX_LIMIT + number)


def note_driven(bases: Bases, key: BaseKey, user: int) -> None:
    """Notes the base of a VM that is driven for a moment."""
    bases.hold(key, user)
    bases.note(key, GIB)
    bases.release(key)


@pytest.mark.parametrize("users", [[0], ["0"], [True], "0", {"0": 0}, None, 7])
def test_base_of_a_file_with_other_users_is_read_or_none_is(
    tmp_path: Path, events: list[Event], users: object
) -> None:
    content = {"version": 1, "bases": [[*WEB, GIB]], "users": users}
    (tmp_path / "bases").write_text(json.dumps(content))
    assert Bases(tmp_path / "bases", events.append).get(WEB) in (GIB, None)


def test_base_of_a_file_of_an_earlier_version_is_read(tmp_path: Path, events: list[Event]) -> None:
    content = {"version": 1, "bases": [[*WEB, GIB]]}
    (tmp_path / "bases").write_text(json.dumps(content))
    assert Bases(tmp_path / "bases", events.append).get(WEB) == GIB


def note_ended(bases: Bases, numbers: range) -> None:
    for number in numbers:
        bases.note(ended(number), GIB)


@contextlib.contextmanager
def process(user: int | None = None) -> Iterator[int]:
    """A process of a user; yields its number."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with subprocess.Popen(["sleep", "600"], user=user) as process:
        try:
            yield process.pid
        finally:
            process.kill()

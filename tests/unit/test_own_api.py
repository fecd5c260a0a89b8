"""Where the API is opened, and what is said where it cannot be."""

import contextlib
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from balloon_daemon.cli import own_api
from balloon_daemon.cli.own_api import check_api, open_api
from balloon_daemon.errors import ConfigError
from balloon_daemon.events import ApiNotOpened, Event
from balloon_daemon.records.bus import Bus
from balloon_daemon.sizing.balloon_policy import PolicySettings
from tests.harness.faults import fault


def opened(named: Path | None) -> tuple[bool, list[Event]]:
    """Whether there is an API, and what was published; nothing is left behind."""
    events: list[Event] = []
    bus = Bus(lambda event, at_s: events.append(event))
    with contextlib.ExitStack() as undo:
        service = open_api(named, PolicySettings(), bus, undo)
    bus.drain()
    return service is not None, events


def test_api_is_where_the_flag_says_and_is_undone_by_a_start_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    assert opened(path) == (True, [])
    assert not path.exists()


@pytest.mark.parametrize("runtime", ["", "relative"])
def test_without_a_flag_and_a_runtime_directory_there_is_none(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", runtime)
    assert opened(None) == (False, [])


def test_service_has_one_in_the_first_of_its_directories_unless_it_is_told_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/run/other")
    assert opened(None) == (True, [])
    assert opened(Path("none")) == (False, [])


@fault("a service whose API cannot be opened")
def test_service_without_h11_goes_on_without_an_api_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("server", "answering", "client"):
        monkeypatch.delitem(sys.modules, f"balloon_daemon.api.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "h11", None)  # As where it is not installed.
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    why = (
        f"API socket {tmp_path}/api.sock: the API needs the package h11, which is not installed; "
        "install it (python3-h11), or leave --api out"
    )
    assert opened(None) == (False, [ApiNotOpened(why)])
    with pytest.raises(ConfigError, match="needs the package h11"):
        opened(tmp_path / "api.sock")


@pytest.mark.parametrize("where", ["file", "none/api.sock", "open/api.sock", "x" * 120, "taken"])
def test_check_finds_what_a_start_would_and_makes_nothing(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / where))
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "taken"))
        taken.listen()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError):
            opened(tmp_path / where)
        with pytest.raises(ConfigError, match=re.escape(f"API socket {tmp_path / where}: ")):
            check_api(tmp_path / where)
        assert isinstance(check_api(None), ApiNotOpened)
        assert check_api(Path("none")) is None
        assert check_api(tmp_path / "api.sock") is None
        assert sorted(tmp_path.rglob("*")) == before


def test_directory_that_cannot_be_made_is_said_with_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "api.sock"
    monkeypatch.setattr(own_api, "default_socket", lambda: path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    wanted = f"API socket {path}: {path.parent} cannot be made; name another path (--api)"
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        opened(path)

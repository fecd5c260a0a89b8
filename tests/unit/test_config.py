"""The settings' defaults: where to listen for whom, and which policy file."""

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from balloon_daemon.config.model import (
    Config,
    default_policy_file,
    default_socket,
    fallback_directory,
)
from balloon_daemon.config.vms import Discover
from balloon_daemon.linux.directories import is_private
from balloon_daemon.sizing.vm_settings import Profile
from tests.harness.other_user import NOBODY, as_user


def ordinary_user() -> AbstractContextManager[None]:
    """Whoever runs the tests, or nobody where that is root."""
    return as_user(NOBODY) if os.geteuid() == 0 else contextlib.nullcontext()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose socket it is about")
@pytest.mark.parametrize("runtime", [None, "/run/user/0"])
def test_socket_of_root_is_below_run_whatever_the_environment(
    runtime: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if runtime is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert default_socket() == Path("/run/balloond/balloond.sock")


def test_socket_of_a_user_is_in_the_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not looked at: whoever set it says that it is the user's own.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent/runtime")
    with ordinary_user():
        assert default_socket() == Path("/nonexistent/runtime/balloond.sock")


@pytest.mark.parametrize("named", [None, "", "relative/directory"])
def test_socket_of_a_user_without_a_runtime_directory_is_where_nobody_else_may_write(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if named is not None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", named)
    with ordinary_user():
        usual = Path(f"/run/user/{os.geteuid()}")
        directory = usual if is_private(usual) else fallback_directory()
        assert default_socket() == directory / "balloond.sock"


def test_fallback_directory_is_each_users_own() -> None:
    with ordinary_user():
        assert fallback_directory() == Path(f"/tmp/balloond-{os.geteuid()}")


def test_default_policy_file_is_the_shipped_one() -> None:
    path = default_policy_file()
    assert path.name == "balloon_device.policy"
    assert "madvise: " in path.read_text()


def test_defaults_are_a_polled_host_and_a_vm_of_any_size() -> None:
    config = Config()
    assert config.socket == default_socket()
    assert config.policy_file == default_policy_file()
    assert (config.vm_mem_bytes, config.low_mem_dir, config.margin_bytes) == (None, None, None)
    assert (config.policy.steps, config.policy.recheck_s, config.poll_s) == (16, 1.0, 1.0)
    assert config.page_reporting
    assert (config.vms, config.discover, config.profile) == ((), Discover(), Profile.SEED)


def test_settings_do_not_change_under_a_running_daemon() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().poll_s = 2.0  # type: ignore[misc]  # what is tested

"""``balloonctl install-service`` in a root directory of its own: what is written, and refused."""

import os
import re
import shutil
from pathlib import Path

import pytest

from balloon_daemon.ctl import service
from balloon_daemon.ctl.main import main
from balloon_daemon.ctl.service import (
    PACKAGES_UNITS,
    SETTINGS,
    SYSUSERS,
    UNIT,
    Installed,
    ServiceError,
    install,
    uninstall,
)

ROOT = Path(__file__).parents[2]
PROGRAMS = Path("/opt/balloond/bin")

Output = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root directory of an image with balloond's programs in it."""
    root = tmp_path / "image"
    for name in ("balloond", "balloonctl"):
        program = root / PROGRAMS.relative_to("/") / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
    return root


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """What pip has installed for that image."""
    share = tmp_path / "share"
    shutil.copytree(ROOT / "systemd", share / "doc/balloond/systemd")
    return Installed(PROGRAMS, share)


def found(root: Path) -> set[str]:
    paths = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    return {path for path in paths if not path.startswith("opt/")}


def test_unit_names_these_programs_and_is_otherwise_the_shipped_one(
    installed: Installed, root: Path
) -> None:
    install(installed, root, dry=False)

    assert found(root) == {UNIT, SYSUSERS, SETTINGS}
    mark, *lines = (root / UNIT).read_text().splitlines()
    assert mark.startswith("# Written by balloonctl install-service")
    shipped = (ROOT / "systemd/balloond.service").read_text().splitlines()
    changed = [line for line, old in zip(lines, shipped, strict=True) if line != old]
    assert changed == [
        f"Documentation=file:{installed.share}/man/man8/balloond.8",
        f"ExecStart={PROGRAMS}/balloond --config=-/etc/balloond/balloond.toml $BALLOOND_ARGS",
        f"ExecReload={PROGRAMS}/balloonctl reload",
    ]
    for name, source in ((SYSUSERS, "balloond.sysusers"), (SETTINGS, "balloond.toml")):
        assert (root / name).read_text() == (ROOT / "systemd" / source).read_text()
    assert {(root / name).stat().st_mode & 0o777 for name in found(root)} == {0o644}


def test_second_time_it_renews_the_unit_and_keeps_the_settings(
    installed: Installed, root: Path
) -> None:
    install(installed, root, dry=False)
    unit = (root / UNIT).read_text()
    (root / UNIT).write_text(unit.replace("WatchdogSec=60", "WatchdogSec=90"))
    (root / SETTINGS).write_text("[host]\n")
    install(installed, root, dry=False)
    assert (root / UNIT).read_text() == unit
    assert (root / SETTINGS).read_text() == "[host]\n"


def test_uninstall_leaves_the_settings_alone_and_nothing_else(
    installed: Installed, root: Path
) -> None:
    install(installed, root, dry=False)
    uninstall(installed, root, dry=False)
    assert found(root) == {SETTINGS}
    with pytest.raises(ServiceError, match="no such file; there is nothing to remove"):
        uninstall(installed, root, dry=False)


def test_dry_run_says_what_would_be_written_and_writes_nothing(
    installed: Installed, root: Path, capsys: Output
) -> None:
    install(installed, root, dry=True)
    assert found(root) == set()
    names = (UNIT, SYSUSERS, SETTINGS)
    assert capsys.readouterr().out.splitlines() == [f"would write {root}/{each}" for each in names]


@pytest.mark.parametrize("unit", PACKAGES_UNITS)
def test_packages_unit_is_never_hidden(unit: str, installed: Installed, root: Path) -> None:
    (root / unit).parent.mkdir(parents=True)
    (root / unit).touch()
    with pytest.raises(ServiceError, match="is there: balloond was installed by a package"):
        install(installed, root, dry=False)
    assert found(root) == {unit}


@pytest.mark.parametrize("masked", [False, True], ids=["somebody's own", "masked"])
def test_unit_of_somebody_elses_stays(masked: bool, installed: Installed, root: Path) -> None:
    unit = root / UNIT
    unit.parent.mkdir(parents=True)
    if masked:
        unit.symlink_to("/dev/null")
    else:
        unit.write_text("[Service]\n")
    for change in (install, uninstall):
        with pytest.raises(ServiceError, match="is not install-service's: move it away first"):
            change(installed, root, dry=False)
    assert found(root) == {UNIT}


@pytest.mark.parametrize("link", ["etc", "etc/systemd", "etc/systemd/system"])
def test_link_in_place_of_a_directory_of_the_image_is_refused(
    link: str,
    installed: Installed,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    (tmp_path / "outside/systemd/system").mkdir(parents=True)
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(tmp_path / "outside" / link.removeprefix("etc").lstrip("/"))
    monkeypatch.setattr(service, "installed_here", lambda: installed)
    for command in ("install-service", "uninstall-service"):
        assert main([command, "--root", str(root)]) == service.EXIT_USAGE
        assert capsys.readouterr().err == (
            f"balloonctl {command}: {root}/{link}: it is a symbolic link, and none is followed in "
            "an image; remove it\n"
        )
    assert [path for path in (tmp_path / "outside").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["etc/systemd", "etc/systemd/system"])
def test_link_that_is_made_in_place_of_a_directory_meanwhile_is_not_followed(
    name: str, installed: Installed, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_host = tmp_path / "host"
    (of_the_host / "systemd/system").mkdir(parents=True)
    install(installed, root, dry=False)
    unlink = os.unlink

    def swap(path: str, *, dir_fd: int | None = None) -> None:
        """What whoever has the image does between the first step of a write and the others."""
        monkeypatch.setattr(os, "unlink", unlink)
        (root / name).rename(root / "moved")
        (root / name).symlink_to(of_the_host / name.removeprefix("etc/"))

    monkeypatch.setattr(os, "unlink", swap)
    install(installed, root, dry=False)
    with pytest.raises(OSError, match="it is a symbolic link"):
        install(installed, root, dry=False)
    assert [path for path in of_the_host.rglob("*") if path.is_file()] == []


def test_file_that_is_put_in_the_place_of_the_new_one_meanwhile_is_not_written(
    installed: Installed, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_host = tmp_path / "shadow"
    of_the_host.write_text("secret")

    def link_instead(path: str, *, dir_fd: int | None = None) -> None:
        os.symlink(of_the_host, path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", link_instead)
    with pytest.raises(FileExistsError):
        install(installed, root, dry=False)
    assert of_the_host.read_text() == "secret"


def test_unit_that_is_a_fifo_in_the_image_is_not_waited_for(
    installed: Installed, root: Path
) -> None:
    (root / UNIT).parent.mkdir(parents=True)
    os.mkfifo(root / UNIT)
    with pytest.raises(ServiceError, match="is not install-service's: move it away first"):
        install(installed, root, dry=False)


@pytest.mark.parametrize(
    ("programs", "why"),
    [
        ("/home/me/venv/bin", "the service does not see /home; install balloond elsewhere"),
        ("/root/venv/bin", "the service does not see /root; install balloond elsewhere"),
        ("/opt/two words/bin", "a unit takes letters, digits and /._+- only"),
        ("/opt/nowhere/bin", "no such program below "),
    ],
)
def test_programs_that_the_service_could_not_run_are_refused(
    programs: str, why: str, installed: Installed, root: Path
) -> None:
    with pytest.raises(ServiceError, match=re.escape(why)):
        install(Installed(Path(programs), installed.share), root, dry=False)
    assert found(root) == set()


def test_balloond_of_no_wheel_is_told_in_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"balloond\.service: No such file or directory; "):
        install(Installed(PROGRAMS, tmp_path / "none"), root, dry=False)


@pytest.mark.parametrize("command", ["install-service", "uninstall-service"])
def test_whoever_is_not_root_is_told_so_and_how_to_look(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([command]) == service.EXIT_USAGE
    why = "only root may do this; use sudo, or --dry-run to see what it does"
    assert capsys.readouterr().err == f"balloonctl {command}: {why}\n"


def test_file_that_cannot_be_written_is_named_without_a_traceback(
    installed: Installed, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (root / "etc").touch()
    monkeypatch.setattr(service, "installed_here", lambda: installed)
    assert main(["install-service", "--root", str(root)]) == service.EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"balloonctl install-service: {root}/etc")


def test_root_directory_that_there_is_not_is_refused(capsys: Output) -> None:
    assert main(["install-service", "--root", "/nowhere"]) == service.EXIT_USAGE
    assert capsys.readouterr().err == (
        "balloonctl install-service: --root /nowhere: no such directory\n"
    )

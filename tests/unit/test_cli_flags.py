"""The command line of ``balloond``: what each flag sets, and what is said of a wrong one."""

import argparse
import shlex
from pathlib import Path

import pytest

from balloon_daemon import __version__
from balloon_daemon.cli.flags import (
    EXIT_USAGE,
    build_parser,
    config_of,
    read_named_config,
    read_settings,
)
from balloon_daemon.config.metrics_place import MetricsPlace
from balloon_daemon.config.model import Config, default_socket
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.errors import ConfigError, ConfigFileError
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB

SETTINGS: dict[str, tuple[str, str, object]] = {
    "--vm-mem": ("4G", "vm_mem_bytes", 4 * GIB),
    "--socket": ("/run/a b.sock", "socket", Path("/run/a b.sock")),
    "--low-mem-dir": ("/host", "low_mem_dir", Path("/host")),
    "--margin": ("400M", "margin_bytes", 400 * MIB),
    "--policy": ("other.policy", "policy_file", Path("other.policy")),
    "--no-page-reporting": ("", "page_reporting", False),
    "--profile": ("adaptive", "profile", Profile.ADAPTIVE),
    "--dry-run": ("", "dry_run", True),
    "--history": ("/var/lib/b.db", "history", Path("/var/lib/b.db")),
    "--record": ("/srv/a.trace", "record", Path("/srv/a.trace")),
    "--metrics": ("127.0.0.1:9710", "metrics", MetricsPlace(None, "127.0.0.1", 9710)),
    "--speed": ("20", "policy", PolicySettings().faster(20)),
}
"""Flags that end up in Config: a value as it is typed, the field, and what it is there."""

OTHERS: dict[str, tuple[str, str, object]] = {
    "--api": ("/run/a b.sock", "api", Path("/run/a b.sock")),
    "--config": ("-/etc/b.toml", "config", "-/etc/b.toml"),
    "--discover": ("qmp=/run/*.qmp", "discover", [Discover(qmp=("/run/*.qmp",))]),
    "--policy-dialect": ("c", "policy_dialect", "c"),
    "--user": ("vms", "user", "vms"),
    "--keep-fds": ("", "keep_fds", True),
    "--log": ("json", "log", "json"),
    "-v": ("", "verbose", True),
    "--verbose": ("", "verbose", True),
    "--check": ("", "check", True),
}
"""Flags that the start itself reads."""


def parsed(line: str) -> argparse.Namespace:
    return build_parser().parse_args(shlex.split(line))


def typed(flag: str, value: str) -> str:
    return f"{flag}={shlex.quote(value)}" if value else flag


@pytest.mark.parametrize("flag", SETTINGS)
def test_flag_sets_its_setting_and_no_other(flag: str) -> None:
    value, field, expected = SETTINGS[flag]
    config, usual = config_of(parsed(typed(flag, value))), config_of(parsed(""))

    assert getattr(config, field) == expected
    assert getattr(usual, field) != expected
    changed = {name for name in Config.__slots__ if getattr(config, name) != getattr(usual, name)}
    beside = {"--speed": {"poll_s"}, "--socket": {"is_default_socket"}}
    beside["--profile"] = {"found_profile"}
    assert changed == {field} | beside.get(flag, set())


@pytest.mark.parametrize("flag", OTHERS)
def test_flag_sets_what_the_start_reads(flag: str) -> None:
    value, name, expected = OTHERS[flag]
    args, usual = vars(parsed(typed(flag, value))), vars(parsed(""))

    assert args[name] == expected
    assert {key for key in args if args[key] != usual[key]} == {name}


def test_every_flag_is_tested_and_in_the_help() -> None:
    parser = build_parser()
    flags = {option for action in parser._actions for option in action.option_strings}

    assert flags == SETTINGS.keys() | OTHERS.keys() | {"-h", "--help", "--version"}
    assert all(flag in parser.format_help() for flag in flags)


def test_no_flags_are_the_defaults() -> None:
    assert config_of(parsed("")) == Config(is_default_socket=True)
    args = parsed("")
    assert (args.log, args.policy_dialect, args.user) == ("text", "python", None)
    assert (args.keep_fds, args.verbose, args.check) == (False, False, False)


WEB = VmConfig("web", Kind.QMP, "/run/web.qmp", VmSettings())
FILE = Config(
    socket=None, margin_bytes=GIB, low_mem_dir=Path("/l"), vms=(WEB,), profile=Profile.CAREFUL
)
"""What a configuration file may say."""


@pytest.mark.parametrize(
    ("line", "libvirt", "qmp"),
    [
        ("--discover libvirt", ("qemu:///system",), ()),
        ("--discover libvirt --discover libvirt", ("qemu:///system",), ()),
        ("--discover libvirt=qemu:///session", ("qemu:///session",), ()),
        ("--discover qmp=/run/*.qmp --discover qmp=/b", (), ("/run/*.qmp", "/b")),
        ("--discover libvirt --discover qmp=/run/*.qmp", ("qemu:///system",), ("/run/*.qmp",)),
    ],
)
def test_what_is_discovered_needs_no_file_and_opens_no_socket(
    line: str, libvirt: tuple[str, ...], qmp: tuple[str, ...]
) -> None:
    config = config_of(parsed(line))
    assert config.discover == Discover(libvirt, qmp)
    assert (config.socket, config.own_sockets, config.profile) == (None, (), Profile.SEED)
    assert config_of(parsed(f"{line} --socket /s")).socket == Path("/s")


def test_flags_are_added_to_the_files_vms_and_count_more_than_its_host() -> None:
    assert config_of(parsed(""), FILE) == FILE
    flags = "--socket /s --margin 2G --low-mem-dir /m --vm-mem 4G --discover libvirt"
    config = config_of(parsed(flags), FILE)
    assert (config.margin_bytes, config.low_mem_dir) == (2 * GIB, Path("/m"))
    assert (config.vms, config.discover.libvirt) == ((WEB,), ("qemu:///system",))
    (own,) = config.own_sockets
    assert (own.name, own.address, own.vm_mem_bytes) == ("", "/s", 4 * GIB)
    assert own.settings.profile is Profile.CAREFUL


def test_profile_is_that_of_all_vms_that_name_none() -> None:
    vms = (WEB, WEB._replace(name="db", address="/run/db.qmp"))
    file = Config(socket=None, vms=vms, unprofiled=frozenset({"db"}))
    config = config_of(parsed("--profile adaptive --socket /s"), file)
    profiles = {vm.name: vm.settings.profile for vm in (*config.vms, *config.own_sockets)}
    assert profiles == {
        "web": WEB.settings.profile,
        "db": Profile.ADAPTIVE,
        "": Profile.ADAPTIVE,
    }
    assert config.found_profile is Profile.ADAPTIVE
    assert config_of(parsed("--discover libvirt")).found_profile is Profile.CAREFUL


def test_file_that_names_no_vm_leaves_the_socket_as_it_is_without_a_file() -> None:
    config = config_of(parsed(""), Config(socket=None, profile=Profile.CAREFUL))
    assert config.socket == default_socket()


def test_named_vms_have_sockets_of_their_own_after_the_common_one() -> None:
    own = VmConfig("db", Kind.VHOST_USER, "/run/db.sock", VmSettings(), 2 * GIB)
    config = config_of(parsed("--socket /s"), Config(socket=None, vms=(WEB, own)))
    assert [(vm.name, vm.address) for vm in config.own_sockets] == [
        ("", "/s"), ("db", "/run/db.sock"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--vm-mem 4G", "--vm-mem is for VMs that connect to --socket; name a socket"),
        ("--socket /run/web.qmp", "--socket /run/web.qmp: the VM web is reached there; name"),
    ],
)
def test_flag_that_the_file_rules_out_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"^{complaint}"):
        config_of(parsed(line), FILE)


def test_file_after_a_minus_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    assert read_named_config(None) is None
    assert read_named_config(f"-{path}") is None
    with pytest.raises(ConfigFileError, match="No such file or directory; name a file that"):
        read_named_config(str(path))
    path.write_text("[host]\nmargin = '2G'\n")
    for named in (str(path), f"-{path}"):
        found = read_named_config(named)
        assert found is not None
        assert found.config.margin_bytes == 2 * GIB


def test_settings_are_those_of_flags_file_and_drop_ins_and_the_flags_count_most(
    tmp_path: Path,
) -> None:
    path = tmp_path / "b.toml"
    path.write_text("[host]\nmargin = '2G'\nlow_mem_dir = '/a'\n")
    (tmp_path / "balloond.d").mkdir()
    (tmp_path / "balloond.d" / "a.toml").write_text("[host]\nmargin = '3G'\nlow_mem_dir = '/b'\n")

    config, _, origins = read_settings(parsed(f"--config {path} --margin 4G"))

    assert (config.margin_bytes, config.low_mem_dir) == (4 * GIB, Path("/b"))
    # Kept for --check alone: a file may name hundreds of VMs.
    assert origins == {}
    assert read_settings(parsed(f"--config {path} --check")).origins != {}
    assert read_settings(parsed("--check")).config == Config(is_default_socket=True)


@pytest.mark.parametrize("speed", ["0.1", "1", "1000"])
def test_speed_is_the_policys_and_the_pollings(speed: str) -> None:
    config = config_of(parsed(f"--speed {speed}"))
    assert config.policy == PolicySettings().faster(float(speed))
    assert config.poll_s == 1 / float(speed)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--vm-mem 4Q", "argument --vm-mem: '4Q' is not a size; write it like 4G, 512M or 1.5GiB"),
        ("--vm-mem 0", "argument --vm-mem: '0' is not a size of at least one byte"),
        ("--vm-mem 1.5", "argument --vm-mem: '1.5' has no unit; write 1.5G or 1.5M"),
        ("--margin 1000", "argument --margin: '1000' has no unit; write 1000G or 1000M"),
        ("--vm-mem 99999999T", "argument --vm-mem: '99999999T' is more than 4 PiB, the most that "
         "x86-64 can address"),
        ("--vm-mem -1G", "argument --vm-mem: '-1G' is not a size; write it like 4G, 512M or "
         "1.5GiB"),
        ("--vm-mem -1", "argument --vm-mem: '-1' is not a size; write it like 4G, 512M or "
         "1.5GiB"),
        ("--vm-mem", "argument --vm-mem: expected one argument"),
        ("--margin much", "argument --margin: 'much' is not a size; write it like 4G, 512M or "
         "1.5GiB"),
        ("--margin -5M", "argument --margin: '-5M' is not a size; write it like 4G, 512M or "
         "1.5GiB"),
        ("--margin --check", "argument --margin: expected one argument"),
        ("--speed fast", "argument --speed: 'fast' is not a number"),
        ("--speed 0.09", "argument --speed: 0.09 is not from 0.1 to 1000"),
        ("--speed 1001", "argument --speed: 1001 is not from 0.1 to 1000"),
        ("--speed nan", "argument --speed: nan is not from 0.1 to 1000"),
        ("--socket", "argument --socket: expected one argument"),
        ("--user", "argument --user: expected one argument"),
        ("--socket ''", "argument --socket: its value is empty; give one, or leave the flag out"),
        ("--user ''", "argument --user: its value is empty; give one, or leave the flag out"),
        ("--discover podman", "argument --discover: 'podman' is neither libvirt, libvirt=URI nor "
         "qmp=PATTERN"),
        ("--discover qmp", "argument --discover: 'qmp' is neither libvirt, libvirt=URI nor "
         "qmp=PATTERN"),
        ("--discover qmp=x/*", 'argument --discover: "x/*" is a relative path; write it from / '
         "on"),
        ("--discover libvirt=system", 'argument --discover: "system" is no libvirt URI; write it '
         "like qemu:///system"),
        ("--config ''", "argument --config: its value is empty; give one, or leave the flag out"),
        ("--policy ''", "argument --policy: its value is empty; give one, or leave the flag out"),
        ("--wibble", "unrecognized arguments: --wibble"),
        ("more", "unrecognized arguments: more"),
        # An abbreviation would become another flag's once there is one.
        ("--keep", "unrecognized arguments: --keep"),
        ("--check=1", "argument --check: ignored explicit argument '1'"),
    ],
)  # fmt: skip
def test_wrong_flag_is_one_line_and_status_2(
    line: str, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(line)

    assert end.value.code == EXIT_USAGE == 2
    assert capfd.readouterr() == ("", f"balloond: {complaint} (see balloond --help)\n")


@pytest.mark.parametrize(
    ("flag", "choices"), [("--log", ["text", "json"]), ("--policy-dialect", ["python", "c"])]
)
def test_wrong_choice_names_those_that_there_are(
    flag: str, choices: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(f"{flag} xml")

    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"balloond: argument {flag}: invalid choice: 'xml' (choose from ")
    assert all(choice in err for choice in choices)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "beginning"),
    [("--help", "usage: balloond "), ("-h", "usage: balloond "), ("--version", "balloond ")],
)
def test_asked_for_help_or_version_it_is_printed_and_status_0(
    flag: str, beginning: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(flag)

    out, err = capfd.readouterr()
    assert (end.value.code or 0, err) == (0, "")
    assert out.startswith(beginning)
    assert flag != "--version" or out == f"balloond {__version__}\n"


def test_help_names_the_exit_statuses_and_examples_that_parse() -> None:
    text = build_parser().format_help()

    assert "exit status: 0 ended as asked, 1 could not run" in text
    _, _, examples = text.partition("examples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert len(lines) >= 3
    for line in lines:
        program, _, flags = line.partition(" ")
        assert program == "balloond"
        config_of(parsed(flags))

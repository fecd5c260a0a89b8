"""cli/check_settings.py: what ``--check`` says of each setting, and of where it comes from."""

import re
import shlex
from pathlib import Path

import pytest

from balloon_daemon.cli.check_settings import VM_DEFAULTS, settings_said
from balloon_daemon.cli.device_user import default_user
from balloon_daemon.cli.flags import build_parser, read_settings
from balloon_daemon.cli.own_api import NOWHERE
from balloon_daemon.config.model import default_policy_file, default_socket
from balloon_daemon.config.toml import VM_KEYS, parse_config
from balloon_daemon.config.vms import Kind

ROOT = Path(__file__).parents[2]


def said(line: str) -> list[str]:
    """What is said of a command line, without the flags that it leaves out."""
    args = build_parser().parse_args(shlex.split(line))
    return list(settings_said(read_settings(args)))


def without_defaults(line: str) -> list[str]:
    return [each for each in said(f"{line} --check") if not each.endswith(", by default")]


def test_without_file_and_flags_every_setting_is_said_with_its_default() -> None:
    assert said("--check") == [
        "[host] margin = the margin file's, else 5.2 % of what can be available, by default",
        "[host] low_mem_dir = ChromeOS's, where there is one, by default",
        f'[host] socket = "{default_socket()}", by default',
        'profile of VMs there = "seed" as there is no configuration file, by default',
        "[host] api = none, by default",
        "[host] history = none, by default",
        "[host] record = none, by default",
        "[host] dry_run = false, by default",
        '[host] profile = "careful", by default',
        "[discover] libvirt = [], by default",
        "[discover] qmp = [], by default",
        "--vm-mem = what its VMM and its guest say, by default",
        f"--policy = {default_policy_file()}, by default",
        "--policy-dialect = python, by default",
        f"--user = {default_user()}, by default",
        "--keep-fds = no, by default",
        "--log = text, by default",
        "--verbose = no, by default",
        "--speed = 1.0, by default",
        "page reporting = yes, by default",
    ]


def test_each_flag_is_said_with_its_value() -> None:
    line = (
        "--margin 3G --low-mem-dir /host --socket '/run/a b' --discover qmp=/run/* --vm-mem 2G "
        "--policy /p --policy-dialect c --user vms --keep-fds --log json -v --speed 2 "
        "--no-page-reporting --api /run/a.sock --dry-run --history /h --record /r"
    )
    assert without_defaults(line) == [
        '[host] margin = "3 GiB", from --margin',
        '[host] low_mem_dir = "/host", from --low-mem-dir',
        '[host] socket = "/run/a b", from --socket',
        '[host] api = "/run/a.sock", from --api',
        '[host] history = "/h", from --history',
        '[host] record = "/r", from --record',
        "[host] dry_run = true, from --dry-run",
        '[discover] qmp has "/run/*", from --discover',
        "--vm-mem = 2 GiB, from --vm-mem",
        "--policy = /p, from --policy",
        "--policy-dialect = c, from --policy-dialect",
        "--user = vms, from --user",
        "--keep-fds = yes, from --keep-fds",
        "--log = json, from --log",
        "--verbose = yes, from --verbose",
        "--speed = 2.0, from --speed",
        "page reporting = no, from --no-page-reporting",
    ]


def test_every_flag_that_sets_something_is_said() -> None:
    """Those that are keys of a file, too, are said as such."""
    keys = {"margin", "low_mem_dir", "socket", "discover", "api", "history", "record", "dry_run"}
    keys |= {"profile"}
    asks = {"help", "version", "check", "config"}
    flags = {action.dest: action for action in build_parser()._actions}
    told = {line.partition(" = ")[0] for line in said("--check")}
    for name in flags.keys() - keys - asks:
        assert {*flags[name].option_strings, name.replace("_", " ")} & told, name


def test_flags_count_more_than_the_same_keys_of_a_file(file: Path) -> None:
    text = "api = '/a'\nhistory = '/h'\nrecord = '/r'\ndry_run = true"
    file.write_text(f"[host]\n{text}\n")
    assert without_defaults(f"--config {file}") == [
        f'[host] api = "/a", from {file}:2',
        f'[host] history = "/h", from {file}:3',
        f'[host] record = "/r", from {file}:4',
        f"[host] dry_run = true, from {file}:5",
    ]
    flags = "--api none --history /h2 --record /r2 --dry-run"
    assert without_defaults(f"--config {file} {flags}")[:4] == [
        f'[host] api = "none", from --api (instead of {file}:2)',
        f'[host] history = "/h2", from --history (instead of {file}:3)',
        f'[host] record = "/r2", from --record (instead of {file}:4)',
        f"[host] dry_run = true, from --dry-run (instead of {file}:5)",
    ]
    settings = read_settings(build_parser().parse_args(["--config", str(file), *flags.split()]))
    config = settings.config
    assert (config.api, config.history, config.dry_run) == (NOWHERE, Path("/h2"), True)


def test_service_has_its_api_in_its_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/balloond")
    assert '[host] api = "/run/balloond/api.sock", by default' in said("--check")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "b.toml"
    path.write_text(
        "[host]\nmargin = '1100M'\nsocket = '/s'\n"
        "[vm.'a b']\nqmp = '/q'\nfloor = '1G'\npriority = 3\n"
        "[discover]\nqmp = ['/a', '/b']\nlibvirt = ['qemu:///system']\n"
    )
    (tmp_path / "balloond.d").mkdir()
    return path


def test_profile_at_the_common_socket_is_said_where_there_is_one(file: Path) -> None:
    (line,) = (each for each in said(f"--config {file} --check") if "VMs there" in each)
    assert line == 'profile of VMs there = "careful" as there is a configuration file, by default'
    assert not any("VMs there" in each for each in said("--discover libvirt --check"))


def test_profile_of_vms_that_name_none_is_said_with_its_place(file: Path) -> None:
    file.write_text("[host]\nprofile = 'seed'\n[vm.a]\nqmp = '/q'\n")
    lines = said(f"--config {file} --check --socket /s")
    assert f'[host] profile = "seed", from {file}:2' in lines
    assert '[vm.a] profile = "seed", by default' in lines
    assert not any("VMs there" in each for each in lines)
    lines = said(f"--config {file} --check --profile adaptive")
    assert f'[host] profile = "adaptive", from --profile (instead of {file}:2)' in lines
    assert '[vm.a] profile = "adaptive", by default' in lines


def test_each_key_of_a_file_is_said_with_its_line(file: Path) -> None:
    assert without_defaults(f"--config {file}") == [
        f'[host] margin = "1100M", from {file}:2',
        f'[host] socket = "/s", from {file}:3',
        f'[discover] libvirt has "qemu:///system", from {file}:10',
        f'[discover] qmp has "/a", from {file}:9',
        f'[discover] qmp has "/b", from {file}:9',
        f'[vm."a b"] qmp = "/q", from {file}:5',
        f'[vm."a b"] floor = "1G", from {file}:6',
        f'[vm."a b"] priority = 3, from {file}:7',
    ]


def test_what_is_overridden_is_named_beside_what_counts(file: Path) -> None:
    drop_in = file.parent / "balloond.d" / "a.toml"
    drop_in.write_text("host.margin = '2G'\nvm.'a b'.floor = '2G'\ndiscover.qmp = ['/c']\n")
    lines = without_defaults(f"--config {file} --margin 3G --discover qmp=/c --discover qmp=/d")
    assert [
        line for line in lines if "margin" in line or "qmp has" in line or "floor" in line
    ] == [
        f'[host] margin = "3 GiB", from --margin (instead of {file}:2, {drop_in}:1)',
        f'[discover] qmp has "/c", from {drop_in}:3 (instead of {file}:9)',
        '[discover] qmp has "/d", from --discover',
        f'[vm."a b"] floor = "2G", from {drop_in}:2 (instead of {file}:6)',
    ]


@pytest.mark.parametrize("kind", Kind)
def test_every_key_that_a_vm_may_have_is_said_once(kind: Kind, file: Path) -> None:
    file.write_text(f"[vm.a]\n{kind.value} = '{'x:///y' if kind is Kind.LIBVIRT else '/y'}'\n")
    lines = said(f"--config {file} --check")
    keys = [match[1] for line in lines if (match := re.match(r"\[vm\.a\] (\w+) = ", line))]
    size = {"memory"} if kind is Kind.VHOST_USER else set()
    others = {"floor", "ceiling", "priority", "profile"}
    assert sorted(keys) == sorted({kind.value} | others | size)
    assert {kind.value for kind in Kind} | others | {"memory"} == {*VM_KEYS}


def test_defaults_that_are_said_are_those_of_the_reference_and_the_real_ones() -> None:
    page = (ROOT / "docs" / "config.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", page, re.MULTILINE))
    assert {key: rows[key].strip("`") for key in VM_DEFAULTS} == VM_DEFAULTS

    (vm,) = parse_config("[vm.a]\nvhost_user = '/s'", "").vms
    assert f'"{vm.settings.profile.value}"' == VM_DEFAULTS["profile"]
    assert str(vm.settings.priority) == VM_DEFAULTS["priority"]
    limits = (vm.settings.floor_bytes, vm.settings.ceiling_bytes, vm.vm_mem_bytes)
    assert limits == (None, None, None)

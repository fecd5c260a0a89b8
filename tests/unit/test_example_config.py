"""systemd/balloond.toml, the shipped example: true, complete, and of no effect as it is."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from balloon_daemon.cli.check_settings import (
    LOW_MEM_DIR_DEFAULT,
    MARGIN_DEFAULT,
    NO_PLACE,
    VM_DEFAULTS,
)
from balloon_daemon.config.gathered import DISCOVER, HOST, VM, WAYS, Parse
from balloon_daemon.config.model import Config
from balloon_daemon.config.values import shown
from balloon_daemon.config.vms import VmConfig
from balloon_daemon.sizing.vm_settings import Profile
from tests.harness.config_text import parse_config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "systemd" / "balloond.toml"
TEXT = FILE.read_text()
TABLES = {"discover": DISCOVER, "host": HOST, "vm.NAME": VM}

# A commented key, and the comment above it.
_KEY = re.compile(r"((?:^# .*\n)+)^#((\w+) = (.+))$", re.MULTILINE)


def section(table: str) -> str:
    """What is below a table's header."""
    _, header, rest = TEXT.partition(f"[{table}]\n")
    assert header
    return re.split(r"^#?\[", rest, maxsplit=1, flags=re.MULTILINE)[0]


def commented(table: str) -> list[tuple[str, str, str]]:
    """Each commented key of a table: its comment, the line, the key."""
    return [(match[1], match[2], match[3]) for match in _KEY.finditer(section(table))]


def with_lines(*lines: str) -> VmConfig:
    """A VM with these lines."""
    (vm,) = parse_config("\n".join(["[vm.NAME]", *lines]), "").vms
    return vm


def test_example_as_it_is_sets_nothing() -> None:
    assert parse_config(TEXT, FILE.name) == Config(socket=None, profile=Profile.CAREFUL)


@pytest.mark.parametrize(("table", "keys"), TABLES.items())
def test_example_has_every_key_of_a_table_once(table: str, keys: Mapping[str, Parse]) -> None:
    assert sorted(key for _, _, key in commented(table)) == sorted(keys)
    assert len(re.findall(r"^#\w+ =", section(table), re.MULTILINE)) == len(keys)


def test_three_settings_that_matter_come_first() -> None:
    assert re.findall(r"^#(\w+) =", TEXT, re.MULTILINE)[:3] == ["libvirt", "qmp", "margin"]


def test_example_is_one_that_balloond_takes_with_every_line_set() -> None:
    text = re.sub(r"^#(?=\w+ = |\[)", "", TEXT, flags=re.MULTILINE)
    others = [line for way in WAYS if way != "vhost_user" for _, line, key in commented("vm.NAME")
              if key == way]  # fmt: skip
    for line in others:
        text = text.replace(f"\n{line}\n", "\n")
    config = parse_config(text, FILE.name)
    assert (config.margin_bytes, config.socket) != (None, None)
    assert config.vms[0].vm_mem_bytes is not None


@pytest.mark.parametrize("way", WAYS)
def test_example_of_a_way_is_one_that_balloond_takes(way: str) -> None:
    (line,) = (line for _, line, key in commented("vm.NAME") if key == way)
    assert with_lines(line).kind.value == way


@pytest.mark.parametrize("table", TABLES)
def test_commented_default_is_the_real_one(table: str) -> None:
    """A line below "Default:" has it; below "Example:" it is described."""
    is_vm = table == "vm.NAME"
    way = ["qmp = '/s'"] if is_vm else []
    for comment, line, key in commented(table):
        text = "\n".join([f"[{table}]", *way, line])
        unset = parse_config("\n".join([f"[{table}]", *way]), "")
        if comment.endswith("Default:\n"):
            assert parse_config(text, "") == unset, key
            if key in VM_DEFAULTS:
                assert shown(tomllib.loads(line)[key]) == VM_DEFAULTS[key]
        else:
            said = re.sub(r"\n# ", " ", comment)
            (default,) = re.findall(r"Default: (.+)\. Example:", said)
            assert default in described(table, key)
            if key not in WAYS and key != "memory":
                assert parse_config(text, "") != unset, key


def described(table: str, key: str) -> set[str]:
    """How the default of a key that has no value may be described."""
    _, _, of_host = MARGIN_DEFAULT.partition("else ")
    name, _, rest = LOW_MEM_DIR_DEFAULT.partition(",")
    return {
        ("host", "margin"): {of_host},
        ("host", "low_mem_dir"): {f"{name} (/sys/kernel/mm/chromeos-low_mem),{rest}"},
        ("host", "socket"): {
            "none where VMs are named or discovered, else /run/balloond/balloond.sock"
        },
        ("host", "api"): {"/run/balloond/api.sock as a service, else none"},
        ("host", "history"): {NO_PLACE},
        ("host", "record"): {NO_PLACE},
        ("host", "metrics"): {NO_PLACE},
    }.get((table, key), {"none"} if key in WAYS else {VM_DEFAULTS.get(key, "")})

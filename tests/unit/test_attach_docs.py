"""What the documentation has a user type: each command, file and description is one that works."""

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest

from balloon_daemon.cli.flags import build_parser, config_of
from balloon_daemon.config.toml import DISCOVER_KEYS, HOST_KEYS, VM_KEYS
from balloon_daemon.config.values import PRIORITIES
from tests.harness.config_text import parse_config
from tests.vm.firecracker import BALLOON as FIRECRACKERS_BALLOON
from tests.vm.libvirt_host import DOMAIN
from tests.vm.qemu import BALLOOND_DEVICE, QEMU_BALLOON

ROOT = Path(__file__).parents[2]
ATTACH, CONFIG, VMMS = ROOT / "docs/attach.md", ROOT / "docs/config.md", ROOT / "docs/vmms.md"
PAGES = [ATTACH, CONFIG, ROOT / "docs/running.md"]
WITH_FILES = [*PAGES, ROOT / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """What the page has a user start balloond with."""
    text = re.sub(r"\s*\n\s*", " ", page.read_text())
    named = re.findall(r"`(balloond --[^`]+)`", text)
    lines = re.findall(r"^ {4}(?:sudo )?(balloond --.+)$", page.read_text(), re.MULTILINE)
    return [command.replace("FILE", "/etc/balloond/balloond.toml") for command in named + lines]


@pytest.mark.parametrize("page", WITH_FILES, ids=lambda page: page.name)
def test_configuration_in_the_documentation_has_no_mistake(page: Path) -> None:
    assert blocks(page, "toml")
    for block in blocks(page, "toml"):
        assert parse_config(block, page.name).vms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_in_the_documentation_is_one_that_balloond_takes(page: Path) -> None:
    assert commands(page)
    for command in commands(page):
        config_of(build_parser().parse_args(shlex.split(command)[1:]))


def test_every_way_to_reach_a_vm_has_a_recipe() -> None:
    recipes = [
        vm.kind.value for text in blocks(ATTACH, "toml") for vm in parse_config(text, "").vms
    ]
    assert sorted(recipes) == sorted(set(VM_KEYS[:6]))


@pytest.mark.parametrize(
    ("section", "keys"),
    [("`[host]`", HOST_KEYS), ("`[vm.NAME]`", VM_KEYS), ("`[discover]`", DISCOVER_KEYS)],
)
def test_reference_has_each_key_once(section: str, keys: tuple[str, ...]) -> None:
    text = CONFIG.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(keys)


def test_reference_has_the_bounds_of_a_priority() -> None:
    assert f"| −{-PRIORITIES[0]} to {PRIORITIES[-1]};" in CONFIG.read_text()


def test_libvirts_description_has_the_devices_address() -> None:
    memory, domain = (ElementTree.fromstring(text) for text in blocks(ATTACH, "xml"))
    assert memory.find("memballoon[@autodeflate='on']") is not None
    assert domain.find("memoryBacking/access[@mode='shared']") is not None
    assert domain.find("devices/memballoon[@model='none']") is not None
    namespace = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    arguments = [arg.get("value", "") for arg in domain.iter(f"{namespace}arg")]
    assert arguments[-1].endswith(",bus=pcie.0,addr=0x1e")


def test_qemus_options_are_those_of_the_tests_with_real_guests() -> None:
    by_monitor, own = (
        shlex.split(command)
        for command in blocks(ATTACH, "sh")
        if command.startswith("qemu-system-x86_64")
    )
    assert by_monitor[by_monitor.index("-device") + 1] == QEMU_BALLOON
    device = own[own.index("-device") + 1].split(",")
    assert [word for word in BALLOOND_DEVICE.split(",") if word != "id=balloon"] == device


def test_firecrackers_balloon_is_that_of_the_tests_with_a_real_microvm() -> None:
    (config,) = blocks(ATTACH, "json")
    (body,) = re.findall(r"-X PUT http://localhost/balloon \\\n\s+-d '(.*)'", VMMS.read_text())
    assert json.loads(config) == {"balloon": FIRECRACKERS_BALLOON}
    assert json.loads(body) == FIRECRACKERS_BALLOON


def test_libvirts_balloon_is_that_of_the_tests_with_real_domains() -> None:
    devices = ElementTree.fromstring(blocks(ATTACH, "xml")[0])
    tested = ElementTree.fromstring(DOMAIN.format_map(defaultdict(str)))
    (balloon,), (real,) = devices.iter("memballoon"), tested.iter("memballoon")
    assert balloon.attrib == real.attrib


def test_tests_that_show_a_way_are_there() -> None:
    (row,) = (line for line in ATTACH.read_text().splitlines() if line.startswith("| shown with"))
    named = re.findall(r"`([\w/]+\.py)`", row)
    assert len(named) == 7
    folders = [ROOT / "tests" / ("" if "/" in name else "kernel") / name for name in named]
    assert [path for path in folders if not path.is_file()] == []

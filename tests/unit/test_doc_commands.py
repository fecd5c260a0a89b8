"""Each command in the documents is one that its program takes, or that the tests type."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from balloon_daemon.cli.flags import build_parser, config_of
from balloon_daemon.ctl.main import build_parser as ctl_parser
from tests.harness.config_text import parse_config
from tests.harness.doc_commands import (
    NOT_TYPED,
    OTHERS_PROGRAMS,
    Typed,
    as_shown,
    blocks,
    commands,
    steps,
)

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])]
TYPED_PAGES = ("attach.md", "install.md", "metrics.md")
"""Whose commands for root tests/packages/test_tutorials.py types, as all of the tutorials."""

_PARTS = re.compile(r" (?:\||&&) ")
_INLINE = re.compile(r"`(?:sudo )?(balloonctl|balloond) ([^`]+)`")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def all_commands() -> list[tuple[str, str]]:
    """(page, command) of all pages."""
    return [(page.name, command) for page in PAGES for command in commands(page)]


def typed_in(page: str) -> set[str]:
    """What of a page is typed on a machine by the tests."""
    path = ROOT / "docs" / page
    if page.startswith("tutorial-"):
        return {step.text for step in steps(path) if isinstance(step, Typed)} - {*NOT_TYPED}
    if page == "README.md":
        return typed_in("tutorial-libvirt.md")
    if page in TYPED_PAGES:
        return {text for text in commands(path) if text.startswith(("sudo", "echo", "sed"))}
    return set()


def taken(part: str) -> bool:
    """Whether one program, with its arguments, is taken by what reads them; a program that is
    none of ours is not.

    Raises:
        SystemExit: our parser refuses it.
    """
    program, *words = shlex.split(part)
    if program == "sudo":
        program, *words = words
    match Path(program).name:
        case "balloond":
            config_of(build_parser().parse_args(words))
        case "balloonctl":
            ctl_parser().parse_args(words)
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert next(word for word in words if "=" not in word) in targets
        case "python" if words[1] == "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
        case "python":
            assert importlib.util.find_spec(words[1]) is not None
        case "curl" if "/run/balloond/api.sock" in words:
            # tests/kernel/test_api_docs.py types all of these.
            asked = commands(ROOT / "docs/api.md")
            paths = {urlsplit(word).path for each in asked for word in shlex.split(each)}
            assert urlsplit(words[-1]).path in paths
        case _:
            return False
    return True


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_command_is_taken_or_typed_or_listed_with_a_reason(page: str, command: str) -> None:
    if command in NOT_TYPED or command in typed_in(page):
        return
    if command.split()[0] in OTHERS_PROGRAMS or page == "vmms.md":
        return
    *parts, last = _PARTS.split(command)
    assert all(map(taken, [*parts, last])), f"{page}: nobody looks whether this works: {command}"


def test_lists_have_only_commands_that_some_page_has() -> None:
    shown = {command for _, command in all_commands()}

    assert len(shown) > 80
    assert set(NOT_TYPED) - shown == set()


def flags(parser: argparse.ArgumentParser, words: Sequence[str]) -> set[str]:
    """The flags of a program, or of the command of it that these words begin with."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and not words[0].startswith("-"):
            assert words[0] in action.choices, words
            found |= flags(action.choices[words[0]], words[1:] or ["check"])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_within_a_sentence_has_only_flags_that_its_program_has(page: Path) -> None:
    text = re.sub(r"\s*\n\s*", " ", page.read_text())
    for program, rest in _INLINE.findall(text):
        # What a version had, a later one may have no more; `balloonctl record: …` is a message.
        if page.name == "changelog.md" or rest.split()[0].endswith(":"):
            continue
        parser = build_parser() if program == "balloond" else ctl_parser()
        assert {*_FLAG.findall(rest)} <= flags(parser, rest.split()), rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_in_a_page_is_one_that_balloond_takes(page: Path) -> None:
    for language, text in blocks(page):
        if language == "toml":
            parse_config(text, page.name)


def test_simulations_run_as_they_are_written(tmp_path: Path) -> None:
    trace = (ROOT / "docs/traces/need.trace").read_bytes()
    (tmp_path / "host.trace").write_bytes(trace)
    program = Path(sys.executable).with_name("balloonctl")
    shown = [command for command in commands(ROOT / "docs/simulate.md") if "simulate" in command]
    assert len(shown) == 5
    for command in shown:
        words = shlex.split(command)[1:]
        done = subprocess.run(
            [program, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout
    assert (tmp_path / "host.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["100 MiB came in 7.1 s"], "96.5 MiB came in 12 s\n", True),
        (["web  512M   0"], "web   1.5G 16M\n", True),
        (["100 MiB came"], "100 MiB went\n", False),
        (["one", "three"], "one\ntwo\nthree\n", False),
        (["one", "…", "three"], "one\ntwo\ntwo\nthree\n", True),
        (["one", "…"], "two\none\n", False),
        (["one"], "one\ntwo\n", False),
        (["VM  BALLOON", "db  1M", "web  0"], "VM  BALLOON\nweb  0\ndb  1M\n", False),
    ],
)
def test_what_is_shown_is_compared_but_for_its_figures(
    shown: list[str], printed: str, same: bool
) -> None:
    assert as_shown(shown, printed) is same

"""The man pages: as their generator makes them, whole, and without a mistake in groff's eyes."""

import argparse
import importlib.util
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from balloon_daemon.cli.flags import build_parser as balloond_parser
from balloon_daemon.ctl.main import build_parser as balloonctl_parser

ROOT = Path(__file__).parents[2]
MAN = ROOT / "man"
PAGES = ("balloond.8", "balloonctl.1", "balloond.toml.5")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pages", MAN / "make_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(page: str) -> str:
    """A page without groff's marks."""
    text = (MAN / page).read_text()
    for mark, said in (("\\fB", ""), ("\\fI", ""), ("\\fR", ""), ("\\-", "-"), ("\\e", "\\")):
        text = text.replace(mark, said)
    return text


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield f".SS {inner.prog}"
                assert inner.prog.endswith(name)
                yield from flags(inner)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_as_its_generator_makes_it(page: str) -> None:
    made = generator().page(page)
    assert (MAN / page).read_text() == made, "run python man/make_pages.py"


@pytest.mark.parametrize("page", PAGES)
def test_page_has_no_mistake(page: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", "-K", "utf8", MAN / page],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("page", "parser"),
    [("balloond.8", balloond_parser()), ("balloonctl.1", balloonctl_parser())],
    ids=["balloond", "balloonctl"],
)
def test_page_has_every_flag_and_command(page: str, parser: argparse.ArgumentParser) -> None:
    text = words(page)
    told = list(flags(parser))
    assert len(told) > 10
    assert [flag for flag in told if flag not in text] == []


def test_page_has_every_key_of_the_file() -> None:
    example = (ROOT / "systemd/balloond.toml").read_text()
    set_ = "\n".join(
        line.removeprefix("#") for line in example.splitlines() if not line.startswith("# ")
    )
    file = tomllib.loads(set_)
    keys = [*file["discover"], *file["host"], *file["vm"]["NAME"]]
    assert len(keys) > 15
    text = words("balloond.toml.5")
    assert [key for key in keys if f"\n.TP\n{key}\n" not in text] == []

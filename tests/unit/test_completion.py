"""completions/ is what balloonctl's command line is."""

import tomllib
from pathlib import Path

import pytest

from balloon_daemon.ctl.completion import FILES, Command, commands, main
from balloon_daemon.ctl.main import build_parser

ROOT = Path(__file__).parents[2]
COMPLETIONS = ROOT / "completions"


@pytest.fixture
def made() -> list[Command]:
    return list(commands(build_parser()))


def test_files_are_those_of_this_command_line(tmp_path: Path) -> None:
    main(str(tmp_path))
    remedy = "run python -m balloon_daemon.ctl.completion completions"
    assert {path.name for path in COMPLETIONS.iterdir()} == FILES.keys()
    for name in FILES:
        assert (COMPLETIONS / name).read_text() == (tmp_path / name).read_text(), remedy


def test_commands_are_found_with_their_arguments(made: list[Command]) -> None:
    by_path = {command.path: command for command in made}
    assert {name for name, _ in by_path[()].below} >= {"status", "top", "plot", "seccomp"}
    assert by_path["seccomp", "compile"].summary == "write the filter for another launcher to load"
    taken = {each.flags or each.metavar: each.value for each in by_path["plot",].arguments}
    assert taken == {
        ("-h", "--help"): "",
        "VM": "vms",
        ("-o", "--output"): "files",
        ("--history",): "files",
        ("--since",): "text",
    }
    (profile,) = [a for a in by_path["simulate",].arguments if a.flags == ("--profile",)]
    assert (profile.value, profile.words) == ("words", ("seed", "careful", "adaptive", "all"))


@pytest.mark.parametrize("name", FILES)
def test_every_command_and_option_is_in_every_file(name: str, made: list[Command]) -> None:
    text = (COMPLETIONS / name).read_text()
    for command in made:
        for option in (flag for each in command.arguments for flag in each.flags):
            assert option.lstrip("-") in text
        for below, _ in command.below:
            assert below in text


def test_packages_put_each_file_where_its_shell_looks() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = told["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {name: place for name, place in shared.items() if "completion" in name} == {
        "completions/balloonctl.bash": "share/bash-completion/completions/balloonctl",
        "completions/_balloonctl": "share/zsh/site-functions/_balloonctl",
        "completions/balloonctl.fish": "share/fish/vendor_completions.d/balloonctl.fish",
    }

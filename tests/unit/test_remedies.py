"""Nobody is told to install balloond from a package index: no package of that name is ours."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = [
    ".ci", "balloon_daemon", "benchmarks", "docs", "findings", "policies", "systemd", "tests",
]  # fmt: skip

# What an installer would look up by its name: no path (/opt/balloond/bin/pip install .).
# pyproject.toml's extras name each other so, and Hatchling puts what they hold in their place.
_BY_NAME = re.compile(
    r"""\b(?:pip3?|pipx|uv|poetry|conda)\s+(?:[a-z]+\s+)?(?:install|run|add)\b[^\n;&|`]*?
        (?<![\w/.])balloond(?![\w/.-])
        |(?<![\w/.])balloond\[""",
    re.VERBOSE,
)


def texts() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != "pyproject.toml"]
    for place in PLACES:
        files += [path for path in (ROOT / place).rglob("*") if path.is_file()]
    kinds = {".py", ".md", ".service", ".policy", ".sh", ".txt", ""}
    return [path for path in files if path.suffix in kinds and path != Path(__file__)]


@pytest.mark.parametrize(
    "line",
    [
        "pip install balloond",
        "pip install 'balloond[ctl]'",
        "python -m pip install -U balloond",
        "pip3 install --user numpy balloond==1.0",
        "pipx install balloond",
        "uv pip install balloond",
        "uv tool install balloond",
        "the extra balloond[ctl]",
    ],
)
def test_line_that_names_a_package_of_an_index_is_found(line: str) -> None:
    assert _BY_NAME.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "sudo /opt/balloond/bin/pip install .",
        "pip install '.[ctl]'",
        "run pip install '.[ctl]' in /src/balloond",
        "sudo systemctl enable --now balloond",
        "ln -s /opt/balloond/bin/balloond",
    ],
)
def test_line_that_installs_a_checkout_is_none(line: str) -> None:
    assert not _BY_NAME.search(line)


def test_no_text_of_ours_tells_anybody_to_install_balloond_by_its_name() -> None:
    files = texts()

    assert len(files) > 200
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if _BY_NAME.search(line)
    ]
    assert found == []

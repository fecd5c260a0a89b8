"""What the documents have a reader type and write, and whether a command prints what is shown."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (/\S+)\n")
_FIGURE = re.compile(r"\d[\d,.]*(?: ?(?:[KMGT]iB|KiB|B|ms|s|min|h|[KMGT]|MiB/s)\b)?")
_ANY_LINES = "…"
_CONTINUED = re.compile(r" *\\\n *")
_INDENTED = re.compile(r"(?:^(?: {4}| {6})\S.*\n)+", re.MULTILINE)
PROGRAMS = (
    *("balloonctl", "balloond", "cloud-hypervisor", "crosvm", "curl", "echo", "free", "make"),
    *("python", "qemu-system-x86_64", "sed", "sudo"),
)
"""What the first command of an indented block begins with; other such blocks show what is printed,
files, or lists."""

NOT_TYPED = {
    "sudo apt-get install git make python3-libvirt": "no network; the root has the packages",
    "sudo git clone URL /usr/src/balloond": "no network, and URL is the reader's",
    "git clone URL balloond && cd balloond": "no network, and URL is the reader's",
    "sudo make package": "make test-packages has made it before",
    "make demo": "tests/kernel/test_demo.py runs what it starts",
    "make wheels": "no network",
    "sudo apt-get install python3-venv python3-dev gcc libc6-dev libcap-dev": "no network",
    "sudo /usr/bin/python3 -I -m venv /opt/balloond": "of wheels, which are not there",
    "sudo /opt/balloond/bin/pip install --no-index build/wheels/*.whl": "of wheels",
    "sudo /opt/balloond/bin/balloonctl install-service": "test_wheel_service.py runs it",
    "sudo ln -s /opt/balloond/bin/balloond /opt/balloond/bin/balloonctl /usr/local/bin/": (
        "of wheels; make install has put the same there"
    ),
    "sudo ln -s /opt/balloond/share/bash-completion/completions/balloonctl "
    "/usr/share/bash-completion/completions/": "of wheels",
    "sudo mkdir -m 700 /var/lib/balloond": "for a balloond that is no service",
    "sudo chown -h libvirt-qemu /run/balloond/balloond.sock": (
        "for a balloond that is no service; tests/kernel/test_socket_places.py has other owners"
    ),
    "free -h": "shows the host's memory",
    "sudo journalctl -u balloond -b": "the boot's lines, however many",
    "sudo journalctl -u balloond VM=build": "tutorial-device.md's is typed",
    "sudo systemctl status balloond": "shows the unit; tests/vm/test_service.py reads it",
    "curl -s http://127.0.0.1:9710/metrics": "tests/vm/test_service_metrics.py asks there",
}
"""Commands that no machine of the tests types, each with the reason."""

OTHERS_PROGRAMS = {
    "qemu-system-x86_64": "tests/unit/test_attach_docs.py compares them with those of real guests",
    "crosvm": "crosvm is in no package, and is imitated from its messages",
    "cloud-hypervisor": "it is in no package, and is imitated from its API",
}
"""VMMs' own command lines outside of the tutorials, which begin VMs of the reader's."""


class Typed(NamedTuple):
    """A command, and the lines that it is shown to print."""

    text: str
    output: tuple[str, ...]


class Written(NamedTuple):
    """A file that the reader writes."""

    path: str
    text: str


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Each fenced block of a page: its language and its text."""
    for match in _FENCE.finditer(page.read_text()):
        yield match[1], match[2]


def commands(page: Path) -> list[str]:
    """Every command that a page shows in a block: fenced as ``sh`` or ``console``, or indented.

    Raises:
        AssertionError: an indented block that begins with a command has a line that is none.
    """
    text = _CONTINUED.sub(" ", page.read_text())
    found = []
    for language, lines in _FENCE.findall(text):
        if language == "sh":
            found += [line.split("  #")[0].strip() for line in lines.splitlines()]
        elif language == "console":
            found += [typed.text for typed in _typed(lines)]
    for block in _indented(text):
        lines = [line.strip() for line in block.splitlines()]
        prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if not prompts and lines[0].split()[0] in PROGRAMS:
            prompts = [line.split("  #")[0].strip() for line in lines]
            assert {line.split()[0] for line in prompts} <= {*PROGRAMS}, block
        found += prompts
    return found


def indented(page: Path) -> list[str]:
    """Every block that is indented, and not the rest of a list's item."""
    return list(_indented(page.read_text()))


def _indented(text: str) -> Iterator[str]:
    left = _FENCE.sub("", text)
    for match in _INDENTED.finditer(left):
        if left[: match.start()].endswith("\n\n"):
            yield match[0]


def steps(page: Path) -> list[Typed | Written]:
    """What a tutorial has its reader do, in order: its ``console`` blocks, and the ``toml`` blocks
    that begin with a file's path."""
    done: list[Typed | Written] = []
    for language, text in blocks(page):
        if language == "console":
            done += _typed(_CONTINUED.sub(" ", text))
        elif language == "toml" and (file := _FILE.match(text)):
            done.append(Written(file[1], text))
    return done


def _typed(text: str) -> Iterator[Typed]:
    _, *each = re.split(r"^\$ ", text, flags=re.MULTILINE)
    for one in each:
        command, *output = one.rstrip("\n").split("\n")
        yield Typed(command, tuple(output))


def without_figures(line: str) -> str:
    """A line with ``#`` for each number with its unit, and one space for several."""
    return " ".join(_FIGURE.sub("#", line).split())


def as_shown(shown: Sequence[str], printed: str) -> bool:
    """Whether a command printed what a page shows: the same lines, whatever their figures.

    Args:
        shown: the lines; one that is ``…`` alone stands for any lines, or none.
        printed: all that the command printed.
    """
    wanted = [without_figures(line) for line in shown]
    found = [without_figures(line) for line in printed.strip("\n").split("\n")]
    pattern = "".join(
        "(?:.*\n)*?" if line == _ANY_LINES else re.escape(line) + "\n" for line in wanted
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None

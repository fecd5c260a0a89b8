"""The documentation names tests as its evidence: each of them must be there."""

import re
from pathlib import Path

from balloon_daemon.sizing.back_off import FIRST_S, MOST_S
from balloon_daemon.sizing.balloon_policy import PolicySettings, max_balloon_bytes
from balloon_daemon.sizing.need import AVAILABLE_BYTES, AVAILABLE_SHARE
from balloon_daemon.sizing.stall import LEAST_BYTES, WINDOW_S
from balloon_daemon.units import MIB
from tests.harness import faults

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "docs" / "security.md"
ATTACKERS = 7

_NAMED = re.compile(r"`(?:(?P<file>[\w/]+\.py)(?:: )?)?(?P<test>test_\w+)?`")


def named_tests(text: str) -> set[tuple[Path, str]]:
    """(file, test or nothing) of each `file: test`, `file` and `test` in backticks.

    A test without a file is in the one that was named before it in its line.
    """
    named = set()
    for line in text.splitlines():
        path: Path | None = None
        for match in _NAMED.finditer(line):
            if match["file"] is not None:
                folder = "tests" if "/" in match["file"] else "tests/kernel"
                path = ROOT / folder / match["file"].removeprefix("tests/")
            elif match["test"] is None:
                continue
            assert path is not None, f"{match['test']} is in no file: {line[:80]}"
            named.add((path, match["test"] or ""))
    return named


def test_security_names_only_tests_that_there_are() -> None:
    named = named_tests(SECURITY.read_text())

    assert len(named) > 60
    assert [path for path, _ in named if not path.is_file()] == []
    missing = {test for path, test in named if test and f"def {test}(" not in path.read_text()}
    assert missing == set()


def test_reliability_names_the_tests_that_are_marked_with_its_faults() -> None:
    page = faults.PAGE.read_text()

    assert faults.written(page, faults.marks()) == page


def test_reliability_names_each_fault_once_and_shows_each_by_something() -> None:
    rows = [line for line in faults.PAGE.read_text().splitlines() if faults.is_row(line)]

    assert len(rows) > 180
    assert len({row.split(faults.SEPARATOR)[0] for row in rows}) == len(rows)
    assert [row[:60] for row in rows if "`" not in row.split(faults.SEPARATOR)[-1]] == []


def test_every_test_of_the_fault_files_is_marked() -> None:
    marked = {(mark.path.name, mark.test) for mark in faults.marks()}

    for name in ("test_host_faults.py", "test_vmm_faults.py", "test_guest_floods.py"):
        source = (ROOT / "tests/kernel" / name).read_text()
        for test in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE):
            assert (name, test) in marked


def test_security_shows_each_promise_by_a_test_and_has_some_against_each_attacker() -> None:
    attackers, rows = SECURITY.read_text().split("## Promises and the tests")
    promised = re.findall(r"\d\.\d+", " ".join(re.findall(r"\(([\d., ]+)\)", attackers)))

    shown = dict(re.findall(r"^\| (\d\.\d+) [^|]+ \| (.+) \|$", rows, re.MULTILINE))
    assert sorted(shown) == sorted(promised)
    assert {number[0] for number in shown} == {str(n) for n in range(1, ATTACKERS + 1)}
    for number, tests in shown.items():
        assert named_tests(tests), number


def test_security_says_of_each_attacker_what_is_not_promised() -> None:
    text = SECURITY.read_text()

    for number in range(1, ATTACKERS + 1):
        (_, section) = text.split(f"\n### {number}. ")
        section = section.split("\n#")[0]
        assert "\n*Promised:*" in section
        assert "\n*Not promised:*" in section


def test_architecture_walks_through_files_and_functions_that_there_are() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    walk = text.split("## One event, file by file")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", walk)

    assert len(named) > 20
    for file, function in named:
        source = (ROOT / "balloon_daemon" / file).read_text()
        assert re.search(rf"def {function}\(" if function else "", source), (file, function)


def test_deciding_has_the_figures_of_the_policy() -> None:
    text = (ROOT / "docs" / "deciding.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) MiB \| ([\d,]+) MiB \| ([\d,]+) MiB \|$", text, re.MULTILINE)

    assert len(rows) == 6
    for row in rows:
        size, most, step = (int(figure.replace(",", "")) * MIB for figure in row)
        assert max_balloon_bytes(size) == most
        assert most == step * PolicySettings().steps

    policy = PolicySettings()
    times = (policy.recheck_s, policy.release_after_s, policy.release_every_s)
    jitters = (
        policy.recheck_jitter_s,
        policy.release_after_jitter_s,
        policy.release_every_jitter_s,
    )
    for time, jitter in zip(times, jitters, strict=True):
        assert f" {time:g} to {time + jitter:g} s" in text
    assert policy.seconds_to_maximum + 1 <= 17
    assert policy.seconds_to_zero <= 9 * 60
    assert f"{AVAILABLE_SHARE:.0%}".replace("%", " % of the VM or") in text
    assert f"or {AVAILABLE_BYTES // MIB} MiB available" in text
    assert (
        f"nothing came in {WINDOW_S:g} s, or less than {LEAST_BYTES / WINDOW_S / MIB:g} MiB"
        in text
    )
    assert f"a minute; if it is in need again soon after that {2 * FIRST_S / 60:g} minutes" in text
    assert f"then 4 … {MOST_S / 60:g} |" in text

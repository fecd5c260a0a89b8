"""The form of ``findings/``; what they find is played by themselves, outside the test suite."""

import os
import re
import subprocess
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parents[2] / "findings"
FIELDS = ("Packages", "Guess", "Behaviour", "Output")
MAX_LINES = 60

SCRIPTS = sorted(FINDINGS.glob("*.sh"))


def header(script: Path) -> dict[str, str]:
    """Each field of the comment at the beginning, its lines joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in script.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        if (begins := re.match(r"# (\w+): +", line)) is not None:
            name = begins[1]
            line = line[begins.end() - 1 :]
        fields[name] = f"{fields.get(name, '')} {line.removeprefix('#').strip()}".strip()
    return fields


def test_findings_are_scripts_with_a_readme_and_their_helpers() -> None:
    assert SCRIPTS
    others = {path.name for path in FINDINGS.iterdir()} - {path.name for path in SCRIPTS}
    assert others == {"README.md", "as-stated", "fetch"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_finding_has_the_form_that_its_readme_asks_for(script: Path) -> None:
    text = script.read_text()

    fields = header(script)
    assert tuple(fields) == FIELDS
    assert all(fields.values())
    assert re.search(r"\d+\.\d+", fields["Packages"]), "which version?"
    assert len(text.splitlines()) <= MAX_LINES
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -eu\n" in text
    assert 'as-stated" "$0"' in text
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_finding_runs_without_balloond_and_leaves_nothing(script: Path) -> None:
    text = script.read_text()

    assert "balloond" not in text
    assert "balloon_daemon" not in text
    assert "://" not in text, "packages come from where apt and pip are configured to look"
    if "mktemp" in text:
        assert re.search(r"^trap '.*rm -rf \"\$box\"' EXIT$", text, re.MULTILINE)


@pytest.mark.parametrize("script", [*SCRIPTS, FINDINGS / "fetch", FINDINGS / "as-stated"])
def test_script_is_well_formed_bash(script: Path) -> None:
    run = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("seen", "status"), [("it is so\nstill\n", 0), ("it is so\n", 1), ("", 2)]
)
def test_what_was_seen_is_compared_with_what_is_stated(
    seen: str, status: int, tmp_path: Path
) -> None:
    finding = tmp_path / "finding.sh"
    finding.write_text(
        "#!/usr/bin/env bash\n# Guess:     no\n# Output:    it is so\n#            still\n"
        "set -eu\n# Output:    not this\n"
    )

    run = subprocess.run(
        [FINDINGS / "as-stated", finding], input=seen, capture_output=True, text=True
    )

    assert run.returncode == status
    assert run.stdout == seen

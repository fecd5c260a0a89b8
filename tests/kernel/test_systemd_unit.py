"""systemd/balloond.service, judged by systemd itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "balloond.service"
DIRECTIVES_WITHOUT_REASON = {"Type", "ExecStart", "Description", "Documentation", "WantedBy"}


def test_unit_verified_by_systemd_gives_no_complaint(tmp_path: Path) -> None:
    # The unit names the installed program; here that is the one in this environment.
    unit = tmp_path / "balloond.service"
    program = Path(sys.executable).parent / "balloond"
    unit.write_text(UNIT.read_text().replace("/usr/bin/balloond", str(program)))

    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_unit_exposure_by_systemd_is_low(tmp_path: Path) -> None:
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(UNIT)],
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stdout


def test_unit_every_setting_has_its_reason() -> None:
    bare = []
    reason = False
    for number, line in enumerate(UNIT.read_text().splitlines(), 1):
        if line.startswith("#"):
            reason = True
        elif "=" not in line:
            reason = False
        elif not reason and line.partition("=")[0] not in DIRECTIVES_WITHOUT_REASON:
            bare.append(f"{number}: {line}")

    assert bare == []

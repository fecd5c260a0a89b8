"""Keeps what the last campaign's inputs reach beyond those kept: ``python -m tests.fuzz.keep``.

libFuzzer's merge: of inputs that reach the same it takes the shortest. Short ones only, as they
are run by every ``make test`` and read by people.
"""

import subprocess
import sys

from tests.fuzz import corpus
from tests.fuzz.campaign import ROOT
from tests.fuzz.targets import TARGETS, Target

MAX_KEPT_BYTES = 400


def keep(target: Target) -> int:
    """Merges one target's corpus into the kept one. Returns how many inputs are kept now."""
    work = ROOT / "build" / "fuzz"
    kept = work / "kept" / target.name
    corpus.unpack(target.corpus, kept)
    command = [
        *(sys.executable, "-m", "tests.fuzz.guided", target.name, str(work / "merge.findings")),
        *(str(kept), str(work / "corpus" / target.name)),
        *("-merge=1", f"-max_len={MAX_KEPT_BYTES}", f"-artifact_prefix={work}/merge-"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    inputs = [path.read_bytes() for path in kept.iterdir()]
    corpus.write(target.corpus, inputs)
    return len(inputs)


if __name__ == "__main__":
    for each in TARGETS.values():
        print(f"{each.name}: {keep(each)} inputs")

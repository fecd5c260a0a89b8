"""Campaign: random policies with known meaning, against the compiled program and the evaluator.

A difference would widen the jail, or narrow it: both are broken invariants.
"""

import time
import traceback
from pathlib import Path
from random import Random

from tests.fuzz.outcome import Finding, Outcome
from tests.harness.seccomp_judges import compare


def campaign(seconds: float, seed: int, folder: Path) -> Outcome:
    """Compares until the time is over or a difference is found; one policy at least."""
    outcome, policies, end = Outcome(), 0, time.monotonic() + seconds
    while policies == 0 or time.monotonic() < end:
        try:
            outcome.executions += compare(Random(f"{seed}/{policies}"), each=20)
        except Exception as err:
            kind = "invariant" if isinstance(err, AssertionError) else "crash"
            again = f"python -m tests.property.test_seccomp_compiler 1000000000 {seed}"
            what = f"policy {seed}/{policies}: {type(err).__name__}"
            details = traceback.format_exc()
            outcome.findings.append(Finding("seccomp_meaning", kind, what, again, details))
            break
        policies += 1
    return outcome

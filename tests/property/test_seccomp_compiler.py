"""Random policies, random calls: text, evaluator and compiled program agree, everywhere.

Run as a program this is the long campaign (``make fuzz-seccomp``)::

    python tests/property/test_seccomp_compiler.py [COMPARISONS [SEED]]
"""

import sys
import time
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.seccomp_judges import compare


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_compiled_policy_has_the_meaning_of_its_text(rng: Random) -> None:
    compare(rng, each=4)


def campaign(comparisons: int, seed: int) -> int:
    """Compares until that many comparisons were made. Returns how many it was."""
    made = policies = 0
    started = reported = time.monotonic()
    while made < comparisons:
        made += compare(Random(f"{seed}/{policies}"), each=20)
        policies += 1
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            print(f"  {made:,} comparisons, {policies:,} policies", flush=True)
    took = time.monotonic() - started
    print(f"seed {seed}: {made:,} comparisons, {policies:,} policies, no difference, {took:.0f} s")
    return made


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}")
    campaign(wanted, seed)

"""Runs libseccomp in a process of its own, which is killed if it takes too long.

With some rules libseccomp never finishes, and Python cannot interrupt a process that hangs in a C
library. So this process loads neither libseccomp nor pyseccomp (which starts programs to find the
library): ``seccomp.libseccomp_process`` does.
"""

import json
import subprocess
from collections.abc import Sequence
from random import Random

from balloon_daemon.linux.own_module import own_module
from balloon_daemon.seccomp.flat_rules import FlatRule
from balloon_daemon.seccomp.judge import CannotSayError, Opinion, OtherProgram, judge
from balloon_daemon.seccomp.policy import ParsedPolicy

WITHIN_S = 5.0
"""How long libseccomp may take. It takes a second for ``RULES_LIMIT`` rules."""


SEED = 0
"""The seed for drawing calls: a policy is always tested with the same calls."""


def second_opinion(policy: ParsedPolicy, bpf: bytes) -> Opinion:
    """Lets libseccomp judge our program of a policy."""
    return judge(policy, bpf, compile_rules, Random(SEED).randrange)


def compile_rules(
    policy: ParsedPolicy, rules: Sequence[FlatRule], within_s: float = WITHIN_S
) -> OtherProgram:
    """libseccomp's program of the rules, for the policy's architecture and default.

    Args:
        policy: the policy.
        rules: the policy's calls as rules.
        within_s: how long libseccomp may take, in seconds.

    Raises:
        CannotSayError: libseccomp or pyseccomp is missing, refuses a rule, or does not finish in
            time.
    """
    wanted = {
        "audit_arch": policy.abi.audit_arch,
        "default": policy.unlisted.value,
        "rules": [
            (rule.name, rule.number, rule.verdict.value, rule.comparisons) for rule in rules
        ],
    }
    command = own_module("balloon_daemon.seccomp.libseccomp_process")
    try:
        done = subprocess.run(
            command, input=json.dumps(wanted).encode(), capture_output=True, timeout=within_s
        )
    except subprocess.TimeoutExpired:
        raise CannotSayError(f"libseccomp was not done within {within_s:g} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CannotSayError(said[-1] if said else f"libseccomp ended with {done.returncode}")
    version, _, bpf = done.stdout.partition(b"\n")
    return OtherProgram(f"libseccomp {version.decode()}", bpf)

"""A whole campaign: every target and every timed campaign, for a share of the time each.

Two lanes side by side, one process at a time in each. What is found is kept in ``build/fuzz``,
with the command that shows it again; what reached new code is kept there as a corpus.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.fuzz.corpus import unpack
from tests.fuzz.outcome import Finding, Outcome
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.timed import NAMES

ROOT = Path(__file__).parents[2]
MAX_FINDINGS = 3
"""A target that has found so much gets no more time: it would find the same again."""

HANG_S = 25
"""One input takes milliseconds; the machine may be busy."""

GRACE_S = 60
"""How much longer than its time a process may take to end."""

TIMED_SHARES = {"state_machine": 5, "seccomp_meaning": 2, "whole_daemon": 8, "hostile_users": 8}

_EXECUTED = re.compile(r"^(?:stat::number_of_executed_units: |#)(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Campaign:
    """Where a campaign works and how it began.

    Attributes:
        seed: of everything random.
        folder: for logs, corpora and inputs that found something.
    """

    seed: int
    folder: Path

    def run(self, seconds: float, names: Sequence[str]) -> Outcome:
        """Divides the time among targets and timed campaigns, and runs them all."""
        lanes: list[list[tuple[int, Callable[[float], Outcome]]]] = [[], []]
        for name in names:
            if name in TARGETS:
                target = TARGETS[name]
                lanes[0].append((target.share, partial(self.guided, target)))
            else:
                lanes[1].append((TIMED_SHARES[name], partial(self.timed, name)))
        outcome = Outcome()
        with ThreadPoolExecutor(len(lanes)) as pool:
            for part in pool.map(lambda lane: _run_lane(lane, seconds), lanes):
                outcome.add(part)
        return outcome

    def guided(self, target: Target, seconds: float) -> Outcome:
        """One target under libFuzzer, started again after each finding."""
        outcome, end = Outcome(), time.monotonic() + seconds
        inputs = self.folder / "inputs"
        corpus = self.folder / "corpus" / target.name
        corpus.mkdir(parents=True, exist_ok=True)
        inputs.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "kept" / target.name
        unpack(target.corpus, kept)
        findings = self.folder / f"{target.name}.findings"
        findings.write_text("")
        log = self.folder / f"{target.name}.log"
        log.write_text("")
        for turn in range(MAX_FINDINGS):
            left_s = int(end - time.monotonic())
            if turn and left_s < 2:
                break
            command = [
                *(sys.executable, "-m", "tests.fuzz.guided", target.name, str(findings)),
                *(str(corpus), str(kept)),
                *(f"-max_total_time={max(1, left_s)}", f"-max_len={target.max_bytes}"),
                *(f"-seed={(self.seed + turn) % 2**31 + 1}", f"-timeout={HANG_S}"),
                *("-rss_limit_mb=1500", "-print_final_stats=1", "-len_control=20"),
                f"-artifact_prefix={inputs}/{target.name}-",
            ]
            if target.dictionary is not None:
                command.append(f"-dict={target.dictionary}")
            status, text = _run(command, left_s + GRACE_S)
            with log.open("a") as file:
                file.write(text)
            executed = [int(number) for number in _EXECUTED.findall(text)]
            outcome.executions += max(executed, default=0)
            if status == 0:
                break
            outcome.findings.append(_found(target, findings, inputs, text))
        return outcome

    def timed(self, name: str, seconds: float) -> Outcome:
        """One of the timed campaigns."""
        again = f"python -m tests.fuzz.timed {name} {seconds:.0f} {self.seed}"
        command = [sys.executable, "-m", "tests.fuzz.timed", name, str(seconds), str(self.seed)]
        status, text = _run([*command, str(self.folder)], seconds + GRACE_S)
        (self.folder / f"{name}.log").write_text(text)
        *_, last = text.rstrip().split("\n")
        try:
            return Outcome.decode(last)
        except (ValueError, KeyError, TypeError):
            what = f"ended with status {status} and no outcome"
            return Outcome(0, [Finding(name, "crash", what, again, text[-4000:])])


def _run_lane(lane: list[tuple[int, Callable[[float], Outcome]]], seconds: float) -> Outcome:
    outcome, end = Outcome(), time.monotonic() + seconds
    shares = sum(share for share, _ in lane)
    for share, job in lane:
        outcome.add(job(max(1.0, (end - time.monotonic()) * share / shares)))
        shares -= share
    return outcome


def _run(command: list[str], timeout_s: float) -> tuple[int, str]:
    """Status and all output; a process that does not end is killed and says so."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            text, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return -1, f"{text}\nit did not end within {timeout_s:.0f} s\n"
        return process.returncode, text


def _found(target: Target, findings: Path, inputs: Path, text: str) -> Finding:
    """What ended libFuzzer: written down by the target, or known from its own words alone."""
    lines = findings.read_text().splitlines()
    findings.write_text("")
    if lines:
        found = json.loads(lines[-1])
        path = inputs / f"{target.name}-{abs(hash(found['input'])):x}"
        path.write_bytes(bytes.fromhex(found["input"]))
        kind, what, details = found["kind"], found["what"], found["traceback"]
    else:
        written = re.search(r"Test unit written to (\S+)", text)
        path = Path(written[1]) if written else inputs
        kind, what, details = "crash", "libFuzzer ended without an exception", text[-3000:]
    again = f"python -m tests.fuzz.replay {target.name} {path}"
    return Finding(target.name, kind, what, again, details)


ALL = (*TARGETS, *NAMES)
"""Every part of a campaign, by name."""

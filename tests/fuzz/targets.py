"""The targets that take bytes, by name, and how much of a campaign's time each is worth."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "data" / "fuzz"
"""Kept inputs, one file for each target: each reached something that no other did."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target.

    Attributes:
        name: its module's, and its corpus's.
        share: its part of the time, relative to the others'.
        max_bytes: the longest input worth trying.
    """

    name: str
    share: int
    max_bytes: int

    def load(self) -> Callable[[bytes], None]:
        """Imports it; under instrumentation, when that is on."""
        run: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{self.name}").run
        return run

    @property
    def corpus(self) -> Path:
        """The file of kept inputs, for ``corpus.read``."""
        return CORPUS / f"{self.name}.hex"

    @property
    def dictionary(self) -> Path | None:
        """Words of the target's language, in libFuzzer's format, if it has one."""
        path = CORPUS / f"{self.name}.dict"
        return path if path.exists() else None


TARGETS = {
    target.name: target
    for target in (
        Target("front_end", 4, 2048),
        Target("guest_rings", 5, 2048),
        Target("pfn_buffers", 1, 2048),
        Target("tubes", 1, 1024),
        Target("policy_files", 3, 1024),
        Target("low_memory_files", 1, 512),
        Target("settings", 1, 256),
        Target("handover_states", 1, 1024),
        Target("vmm_answers", 1, 512),
    )
}

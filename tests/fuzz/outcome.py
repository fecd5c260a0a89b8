"""What a part of a campaign found, as it goes from one process to another and to the reader."""

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must not be.

    Attributes:
        target: which target or campaign found it.
        kind: ``crash`` or ``invariant``.
        what: in a line.
        reproduce: the command that shows it again.
        details: a traceback or the end of a log.
    """

    target: str
    kind: str
    what: str
    reproduce: str
    details: str = ""


@dataclass(slots=True)
class Outcome:
    """What was run and what was found."""

    executions: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Adds another part's."""
        self.executions += other.executions
        self.findings += other.findings

    def encode(self) -> str:
        """One line of JSON, for ``decode``."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, line: str) -> "Outcome":
        """Reads ``encode``'s line. Raises ValueError, KeyError or TypeError for any other."""
        fields = json.loads(line)
        return cls(fields["executions"], [Finding(**each) for each in fields["findings"]])

    def summary(self) -> str:
        """The campaign's last line."""
        kinds = [finding.kind for finding in self.findings]
        return json.dumps(
            {
                "executions": self.executions,
                "crashes": kinds.count("crash"),
                "invariants_broken": kinds.count("invariant"),
                "ok": not kinds and self.executions > 0,
            }
        )

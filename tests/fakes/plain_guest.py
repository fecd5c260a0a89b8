"""A guest for tests: follows its target at once, and records the calls that it gets."""

from balloon_daemon.guests.seam import Actual, Gone, ReportTo, VmRow
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.units import VmId


class PlainGuest:
    """The smallest guest behind the seam.

    Attributes:
        heard: the names of all calls, for this guest and others with the same list.
        gives: whether its balloon follows its target.
        fails: whether its driver has a bug.
        watched_s: how often its figures were last wanted.
        gone: whether it reports that the VM is gone at its next target.
        has_store: whether what is kept of it is stored.
    """

    def __init__(self, vm: VmId, heard: list[tuple[VmId, str]], report: ReportTo) -> None:
        self.vm = vm
        self.heard, self.report = heard, report
        self.targets: list[int] = []
        self.rows: list[VmRow] = []
        self.watched_s: float | None = None
        self.objection: Reason | None = None
        self.gives, self.fails, self.gone = True, False, False
        self.has_store = True

    async def serve(self) -> None:
        self.heard.append((self.vm, "serve"))

    def set_target(self, target_bytes: int) -> None:
        self.heard.append((self.vm, "target"))
        if self.fails:
            raise ValueError(target_bytes)
        self.targets.append(target_bytes)
        if self.gone:
            self.report(self.vm, Gone("no answer"))
        if self.gives:
            self.report(self.vm, Actual(target_bytes, 0.0))

    def request_stats(self) -> None:
        self.heard.append((self.vm, "stats"))

    def watch(self, every_s: float | None) -> None:
        self.watched_s = every_s

    def against_more(self, level: int) -> Reason | None:
        return self.objection

    def keep(self, row: VmRow) -> bool:
        self.heard.append((self.vm, "keep"))
        self.rows.append(row)
        return self.has_store

    async def give_back(self) -> None:
        self.set_target(0)

    stays = True

    def leave(self) -> None:
        self.heard.append((self.vm, "leave"))

"""A VM as the controller sees it: its guest, and the guest's last reports."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Guest,
    GuestState,
    Held,
    Refused,
    Report,
    StateChanged,
    Stats,
    Stuck,
)
from balloon_daemon.rate_limit import LineBudget, RateLimit
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import Decision
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import VmId

SIZES_A_SECOND = 2
"""How many changes of a VM's size are published in a second without ``quiet``: a guest may report
any size at any time."""

ASK_AGAIN_S = 30.0
"""How often a guest of the profile seed is asked for statistics while the same decision about it
repeats itself. The total memory that the guest reports (VIRTIO_BALLOON_S_MEMTOT) may change, and
the VM's size with it (``BalloonLimits``)."""

MOVES, MOVES_A_SECOND = 256, 4
"""How many reports of a VM's balloon size the sizing policy gets in one burst, and how many a
second in the long run (a token bucket). A driver may write ``actual`` as fast as it can, and each
report costs a step of the policy and a line of a trace. The policy checks sizes once a second."""


@dataclass(slots=True, eq=False)
class Vm:
    """A VM.

    Attributes:
        guest: its guest.
        settings: its operator's settings.
        kind: how its balloon is reached, as the configuration file calls it.
        can: its abilities, as its guest reported them last.
        balloon_bytes: its balloon's size, as the driver reports it.
        stats: its guest's last statistics; None where it has sent none.
        held: the host's memory that it occupies; None where that is not known.
        state: the guest's state.
        trouble: the last report of trouble with its balloon; None where there is none.
        vmm_pid: its VMM's process; None: unknown.
        kept: its policy's state that its guest keeps for another balloond; None: it keeps none,
            or may have failed to.
        decided: its last decision other than ``Reason.RECHECK``, and when it was made; None: there
            was none.
        asked_at_s: when a guest of the profile seed was last asked for statistics.
        was_new: whether its last decision was another one than before.
        sizes: limits the rate of the events about its size.
        moves: limits the rate at which the sizing policy gets reports of its balloon's size.
        told_later: the timer at which the policy gets the balloon's latest size; None: the policy
            has got it already.
    """

    guest: Guest
    settings: VmSettings = SEED
    kind: str = ""
    can: frozenset[Ability] = frozenset()
    balloon_bytes: int = 0
    stats: Stats | None = None
    held: Held | None = None
    state: GuestState = GuestState.RUNNING
    trouble: Refused | Stuck | None = None
    vmm_pid: int | None = None
    kept: PolicyState | None = None
    decided: tuple[Decision, float] | None = None
    asked_at_s: float = -math.inf
    was_new: bool = False
    sizes: RateLimit = field(default_factory=lambda: RateLimit(SIZES_A_SECOND))
    moves: LineBudget = field(default_factory=lambda: LineBudget(MOVES, MOVES_A_SECOND))
    told_later: asyncio.TimerHandle | None = None

    def note(self, report: Actual | Stats | Held | StateChanged) -> bool:
        """Notes what its guest reports; returns whether that is new."""
        match report:
            case Actual(balloon_bytes):
                self.balloon_bytes, self.trouble = balloon_bytes, None
            case Stats():
                self.stats = report
            case Held():
                self.held = report
            case StateChanged(state):
                before, self.state = self.state, state
                return state is not before
            case _:
                assert_never(report)
        return True

    def has_kept(self, state: PolicyState, settings: PolicySettings, now_s: float) -> bool:
        """Whether what is kept of it will do after a decision that repeated the one before.

        While memory stays low, each recheck of a VM that has given all moves its two deadlines,
        and storing a state takes far longer than the recheck.
        """
        return self.kept is not None and self.kept.will_do_for(state, settings, now_s)

    def is_to_ask(self, now_s: float, *, new: bool) -> bool:
        """Whether its guest is to be asked for statistics after a decision.

        It is asked after a new decision, and after the decision that follows, so that the log
        shows the effect on the guest. Later repetitions have no effect on it: while the host stays
        low, there is one each second for each VM at its maximum, and each answer would wake
        device, guest and controller. Guests of other profiles are asked regularly anyway.

        Args:
            now_s: the loop's time.
            new: whether the decision is another one than before.
        """
        if self.settings.profile is not Profile.SEED:
            return False
        ask = new or self.was_new or now_s - self.asked_at_s >= ASK_AGAIN_S
        self.was_new = new
        if ask:
            self.asked_at_s = now_s
        return ask

    def may_tell(
        self,
        report: Report,
        loop: asyncio.AbstractEventLoop,
        again: Callable[[VmId, Report], None],
    ) -> bool:
        """Whether the sizing policy is to get a report now.

        Args:
            report: the report.
            loop: the controller's event loop.
            again: called after a while with the balloon's latest size, if the policy does not get
                this report now.
        """
        if not isinstance(report, Actual) or self.moves.has_one(loop.time()):
            return True

        def tell() -> None:
            self.told_later = None
            again(self.guest.vm, Actual(self.balloon_bytes, loop.time()))

        if self.told_later is None:
            self.told_later = loop.call_at(loop.time() + 1 / MOVES_A_SECOND, tell)
        return False

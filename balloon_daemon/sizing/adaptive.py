"""Sizes the balloons of all adaptive VMs of a host at once. Pure.

Theory of operation
    Each second the host's memory is read. Its available memory is to be the *aim*: the margin and
    a headroom. The headroom is how far available memory will fall until balloons have grown, if it
    goes on falling as in the last seconds (``outlook``).

    ============  =================================================================================
    below aim     guests are asked for what is missing, less what they were asked for before and
                  will still give: free memory first, then page cache, of VMs of the lowest
                  priority that have some to spare, each as fast as its balloon was seen to grow
                  (``spare``, ``asking``)
    not plenty    guests are asked for memory that they do not use (``UNUSED_HEADROOM``)
    above aim     for ``CALM_S``: what there is room for goes back, to VMs of the highest priority
                  first, and of these to the guest with the least available memory
    low for long  the targets' sum rises with the time, whatever guests can spare, and is the sum
                  of the maximums 16 looks after low memory began: the promise of each profile
    unknown       nothing is asked for, and nothing given back
    ============  =================================================================================

    A guest whose statistics do not say what it has available gives what the profile seed would
    take: up to a sixteenth of its balloon's maximum a second. ``protection`` treats a guest that
    is in need, stalled or contested as it does with the profile careful. A target that went down
    is not raised for ``TURN_S``, and one that went up is not lowered for as long, except for a
    guest in need.

    ``Adaptive`` remembers only the last seconds: when balloond starts, or a VM becomes adaptive,
    it begins with the VMs' present targets.
"""

import math
from collections.abc import Callable, Mapping

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.adaptive_vm import AdaptiveVm, counted_bytes, settled_bytes
from balloon_daemon.sizing.asking import ask_promised, ask_spare, ask_unused
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import Seen
from balloon_daemon.sizing.outcome import Outcome, Why
from balloon_daemon.sizing.outlook import Outlook, Returned
from balloon_daemon.sizing.priorities import Priorities
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import MIB, PAGE_SIZE, VmId

TURN_S = 10.0
"""For so long a target that was raised is not lowered, and one that was lowered not raised, except
for a guest in need."""

REACTION_S = 3.0
"""The time from a change of available memory until balloons have made up for it: a second until
the host is read, one in which balloons grow, and one by which their sizes and guests' statistics
are late. On the hosts of docs/judgement.md: with 2 s memory is low for twice as long, with 4 s
guests lose twice as much."""

LEAST_HEADROOM, MOST_HEADROOM = 1 / 2, 3.0
"""The headroom, in margins. On the hosts of docs/judgement.md: with a least headroom of a quarter
guests lack a third less, and the host's least available memory is lower; with one margin guests
lack a third more, and memory is low for no less time. With a greatest headroom of one margin
memory is low for three times as long."""

UNUSED_HEADROOM = 4.0
"""The headroom for which guests are asked for memory that they do not use, in margins. When such
memory goes back it stays available to the host until the guest uses it, so the guest loses little
by giving it. On the hosts of docs/judgement.md: with 2 margins memory is low for four times as
long, with 8 hardly less."""

ROOM_KEPT = 1 / 8
"""When memory goes back to guests, the host keeps the aim and this much more available, in
multiples of the margin."""

SOONEST = 0.9
"""A reading is ignored if less than this share of the time between two looks has passed since the
last look, unless memory has just become low."""

FAR, SELDOM = 3.0, 5.0
"""With more available than three times the margin, and all balloons empty, ``Adaptive`` looks five
times as seldom; the low-memory source may be polled more often."""


class Aim(NamedTuple):
    """How much host memory is to be available, in MiB.

    Attributes:
        aim_mib: with less, guests are asked for memory.
        kept_mib: only with more, memory goes back.
    """

    aim_mib: int
    kept_mib: int


class Adaptive:
    """The adaptive VMs of a host.

    Args:
        rows: all VMs.
        priorities: tells which VMs are asked for memory first.
        settings: the policies' numbers: the time between two looks (``recheck_s``), and after how
            many looks with low memory the targets add up to the maximums (``steps``).
        objection: why a VM must not be asked for more just now; None: it may be asked.
    """

    def __init__(
        self,
        rows: Mapping[VmId, Row],
        priorities: Priorities,
        settings: PolicySettings,
        objection: Callable[[VmId, Row, Outcome], Reason | None],
    ) -> None:
        self._rows = rows
        self._priorities = priorities
        self._look_s, self._steps = settings.recheck_s, settings.steps
        self._objection = objection
        self._vms: dict[VmId, AdaptiveVm] = {}
        self._outlook = Outlook()
        self._low = False
        self._looked_at_s = -math.inf
        self._returned = Returned()
        self.next_s = math.inf
        """When to look next; infinity: there is no adaptive VM."""
        self.aim: Aim | None = None
        """The aim of the last look; None: the host's figures were unknown, or nobody looked."""

    def add(self, vm: VmId, row: Row, now_s: float) -> None:
        """Sizes a VM from now on, if it is adaptive."""
        if row.terms.is_adaptive and vm not in self._vms:
            told, actual = row.told_bytes, counted_bytes(row)
            self._vms[vm] = AdaptiveVm(vm, row, told_bytes=told, actual_bytes=actual)
            self._low, self.next_s = False, now_s

    def remove(self, vm: VmId) -> None:
        """Forgets a VM."""
        self._vms.pop(vm, None)
        if not self._vms:
            self.halt()

    def halt(self) -> None:
        """Looks at no reading any more."""
        self._vms.clear()
        self._outlook.forget()
        self.next_s, self.aim = math.inf, None

    @property
    def listens(self) -> bool:
        """Whether ``look`` must be called at once when memory becomes low: not if the last look
        found memory low already, or there is no adaptive VM."""
        return bool(self._vms) and not self._low

    def look(self, seen: Seen, outcome: Outcome) -> None:
        """Takes a reading, and sizes the balloons by it if the next look is due or memory has just
        become low."""
        now_s = outcome.now_s
        low = isinstance(seen, Reading) and seen.is_low
        passed_s = now_s - self._looked_at_s
        soon = passed_s < SOONEST * self._look_s and self.next_s > now_s
        if not self._vms or (soon and (self._low or not low)):
            return
        self._low, self._looked_at_s = low, now_s
        for row in self._rows.values():
            if now_s >= row.back_until_s:
                row.back_bytes = 0
        for each in self._vms.values():
            each.measure(passed_s, now_s)
        far = False
        if isinstance(seen, Reading):
            far = self._size(seen, outcome)
        elif isinstance(seen, NeverLow):
            self._give_back(math.inf, 0, Why(Reason.SWITCHED_OFF, None, None), outcome)
        else:
            self._outlook.forget()
            self.aim = None
        self.next_s = now_s + self._look_s * (SELDOM if far else 1)

    def _size(self, reading: Reading, outcome: Outcome) -> bool:
        """Sizes all balloons; returns whether the next look may come later (``FAR``)."""
        # An operator's reserve raises the margin, and so the aim (the margin and a headroom), but
        # not the headroom's limits, which are multiples of the margin without reserves.
        margin_bytes = (reading.margin_mib - reading.reserved_mib) * MIB
        actual = told = 0
        for row in self._rows.values():
            actual += counted_bytes(row)
            told += settled_bytes(row)
        coming = told
        for each in self._vms.values():
            coming -= max(0, settled_bytes(each.row) - each.ahead_bytes)
        outlook = self._outlook
        outlook.take(reading.available_mib * MIB, actual, told, outcome.now_s)
        least, most = LEAST_HEADROOM * margin_bytes, MOST_HEADROOM * margin_bytes
        falls = outlook.fall_bytes_s * REACTION_S
        aim_bytes = reading.margin_mib * MIB + int(min(max(falls, least), most))
        kept = aim_bytes + int(ROOM_KEPT * margin_bytes)
        self.aim = Aim(aim_bytes // MIB, kept // MIB)
        why = Why(Reason.LOW_MEMORY, reading, self.aim.aim_mib)
        short = aim_bytes - outlook.bare_bytes - coming
        if reading.is_low:
            self._take(short, short, why, outcome)
            return False
        for each in self._vms.values():
            each.low_looks = 0
        wanted = reading.margin_mib * MIB + int(UNUSED_HEADROOM * margin_bytes)
        unused = short
        if not self._returned.is_used(reading.available_mib * MIB, outcome.now_s):
            unused += wanted - aim_bytes
        if short > least / 2 or unused > least:
            reason = Reason.RUNNING_LOW if short > 0 else Reason.UNUSED
            self._take(short, unused, why._replace(reason=reason), outcome)
        if short > least / 2:
            return False
        if outlook.is_long:
            why = why._replace(reason=Reason.MEMORY_BACK, needed_mib=self.aim.kept_mib)
            self._give_back(outlook.least_bytes + told - kept, margin_bytes, why, outcome)
        return told == 0 and reading.available_mib > FAR * reading.margin_mib

    # --- asking for memory --------------------------------------------------------------------

    def _take(self, short_bytes: int, unused_bytes: int, why: Why, outcome: Outcome) -> None:
        """Asks guests for what is missing to the aim. While memory is low, also asks for what
        ``ask_promised`` adds.

        Args:
            short_bytes: how much will be missing to the aim when guests have given what they were
                asked for before; less than 0: nothing.
            unused_bytes: how much is wanted of memory that no guest uses.
            why: what was seen.
            outcome: takes the targets.
        """
        low, now_s = self._low, outcome.now_s
        lowest = outcome.lowest_that_can_give if low else None
        givers: list[AdaptiveVm] = []
        promised: list[AdaptiveVm] = []
        for each in self._vms.values():
            row, each.asked_bytes = each.row, 0
            row.policy.held = held = self._objection(each.vm, row, outcome)
            waits = lowest is not None and held is None
            waits = waits and self._priorities.must_wait(row, lowest, now_s)
            if held is not None:
                each.low_looks = 0
            else:
                held = self._limit(each, now_s)
                if low and not waits:
                    each.low_looks += 1
                    promised.append(each)
            each.against = Reason.LOWER_FIRST if waits and held is None else held
            if held is None:
                each.look_at_spare(now_s, low=low)
                givers.append(each)
        ask_spare(short_bytes, givers)
        ask_unused(unused_bytes, givers)
        if low:
            may = [each for each in givers if each.against is None]
            ask_promised(promised, may, self._steps)
        enough = Reason.ENOUGH_ASKED if short_bytes <= 0 else Reason.NOTHING_TO_SPARE
        for each in self._vms.values():
            if each.asked_bytes:
                self._raise(each, why, outcome)
            elif low and each.row.last_reason is not (reason := each.against or enough):
                row = each.row
                release_at_s = row.policy.state().release_at_s
                said = why._replace(reason=reason)
                outcome.move(each.vm, row, row.told_bytes, release_at_s, said)

    def _limit(self, each: AdaptiveVm, now_s: float) -> Reason | None:
        """Why a VM cannot be asked for more, although there is no objection; None: it can be."""
        if not each.row.policy.max_bytes:
            return Reason.NO_BALLOON
        if not each.left_bytes:
            return Reason.AT_MAXIMUM
        return Reason.JUST_LOWERED if now_s - each.lowered_at_s < TURN_S else None

    def _raise(self, each: AdaptiveVm, why: Why, outcome: Outcome) -> None:
        """Raises a VM's target by its ``asked_bytes``."""
        row, now_s = each.row, outcome.now_s
        release_at_s = row.policy.state().release_at_s
        held_until_s = now_s + TURN_S
        if release_at_s is not None:
            held_until_s = max(release_at_s, held_until_s)
        target_bytes, each.asked_bytes = row.told_bytes + each.asked_bytes, 0
        outcome.move(each.vm, row, target_bytes, held_until_s, why)
        each.raised_at_s, each.told_bytes = now_s, target_bytes

    # --- giving it back -----------------------------------------------------------------------

    def _give_back(self, room_bytes: float, spare_bytes: int, why: Why, outcome: Outcome) -> None:
        """Gives memory back to guests, as much as the host has room for.

        Args:
            room_bytes: how much the host can give back.
            spare_bytes: if ``room_bytes`` exceeds the sum of the targets of all balloons whose
                release is due by at least this, all of these balloons are emptied at once.
            why: what was seen.
            outcome: takes the targets.
        """
        now_s = outcome.now_s
        due: list[AdaptiveVm] = []
        for each in self._vms.values():
            release_at_s = each.row.policy.state().release_at_s
            if release_at_s is None or release_at_s > now_s:
                continue
            if not each.row.told_bytes:
                each.row.policy.go_to(0, None)
            elif now_s - each.raised_at_s >= TURN_S:
                each.look_at_spare(now_s, low=False)
                due.append(each)
        most_bytes = sum(each.row.told_bytes for each in due)
        if room_bytes < most_bytes + spare_bytes:
            # Give back at most half of what the due balloons hold, once in TURN_S: no guest that
            # gets memory back can be asked for it within TURN_S.
            if now_s - self._returned.at_s < TURN_S:
                return
            most_bytes //= 2
        for each in sorted(due, key=_first_to_get):
            told_bytes = each.row.told_bytes
            back_bytes = min(told_bytes, int(min(room_bytes, most_bytes))) // PAGE_SIZE * PAGE_SIZE
            too_small = back_bytes < min(each.small_bytes, told_bytes) or not back_bytes
            if too_small or (back_bytes < told_bytes and self._returned.at_s == now_s):
                continue
            room_bytes -= back_bytes
            most_bytes -= back_bytes
            left_bytes = told_bytes - back_bytes
            outcome.move(each.vm, each.row, left_bytes, now_s if left_bytes else None, why)
            each.lowered_at_s, each.told_bytes = now_s, left_bytes
            available = 0 if why.reading is None else why.reading.available_mib * MIB
            self._returned.note(back_bytes, available, now_s)


def _first_to_get(each: AdaptiveVm) -> tuple[int, float]:
    """Sorts by who gets memory back first: by priority, then by how little is available in the
    guest."""
    return -each.row.priority, 0.0 if each.spare is None else each.spare.available_share

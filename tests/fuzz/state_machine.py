"""Campaign: Hypothesis plays a VMM and its guest against the whole back-end and device at once.

Rightful steps and faults in any order: targets, inflating, deflating, reporting, broken chains,
pausing, memory that comes and goes, a device that dies at any point. After every step each page
of the guest is as it left it, unless it has handed it over; what it has handed over and heard
answered is gone.
"""

import gc
import mmap
import os
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.fd_kind import keep_own_directory
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import RegionDescription
from balloon_daemon.virtio.balloon import (
    OFFERED_FEATURES,
    BalloonFeature,
    BalloonQueue,
    queue_numbers,
)
from tests.fakes.raw_ring import RawRing, area_offsets
from tests.fuzz.front_end import Conversation, handle
from tests.fuzz.outcome import Finding, Outcome
from tests.fuzz.whole_device import WholeDevice
from tests.harness.enemies.messages import FRONTEND_BASE
from tests.harness.invariants import InvariantBrokenError, open_fds, require

PAGE = 4096
LOW, HIGH = 96, 32
PAGES = LOW + HIGH
OWN = 8
"""Pages of rings and buffers, at the beginning."""

HIGH_PFN = 0x10_0000
RING_SIZE = 16
PATIENCE_S = 60.0
_QUEUES = {queue: n for n, queue in queue_numbers(OFFERED_FEATURES).items()}
_PATTERN = [bytes([page + 1]) * PAGE for page in range(PAGES)]
_PAGES = st.sets(st.integers(OWN, PAGES - 1), min_size=1, max_size=40)


def pfn_of(page: int) -> int:
    """The guest's number of a page, which lies in one of two regions."""
    return page if page < LOW else page - LOW + HIGH_PFN


class VmAgainstBalloond(RuleBasedStateMachine):
    """A VM: what its guest believes of each page is the model."""

    steps = 0

    @initialize(slots=st.booleans(), base=st.sampled_from([0, 65530]))
    def start(self, slots: bool, base: int) -> None:
        self.memory = OwnedFd(os.memfd_create("state-machine"))
        os.ftruncate(self.memory.fileno(), PAGES * PAGE)
        self.map = mmap.mmap(self.memory.fileno(), PAGES * PAGE)
        self.map[OWN * PAGE :] = b"".join(_PATTERN[OWN:])
        self.kicks = [OwnedFd(os.eventfd(0, os.EFD_NONBLOCK)) for _ in _QUEUES]
        self.rings = [RawRing(memoryview(self.map)[n * PAGE :], RING_SIZE) for n in range(4)]
        for ring in self.rings:
            ring.start_at(base)
        self.in_balloon: set[int] = set()
        self.dirty: set[int] = set()
        """Handed over and used again since: anything may be in them."""
        self.offered = [0] * len(self.rings)
        self.slots = slots
        self.talk = Conversation()
        self.device = WholeDevice(self.talk.backend)
        self.tell(
            Request.SET_FEATURES,
            # Without PAGE_POISON, so that the pages that are reported are removed.
            int(OFFERED_FEATURES & ~BalloonFeature.PAGE_POISON)
            | wire.VHOST_USER_F_PROTOCOL_FEATURES,
        )
        self.tell(Request.SET_PROTOCOL_FEATURES, int(wire.OFFERED_PROTOCOL_FEATURES))
        self.share()
        self.start_rings()

    # --- the VMM ------------------------------------------------------------------------------

    def tell(self, request: Request, payload: int | bytes = b"", *fds: OwnedFd) -> None:
        if isinstance(payload, int):
            payload = wire.U64.pack(payload)
        given = tuple(OwnedFd(os.dup(fd.fileno())) for fd in fds)
        message = wire.Message(request, wire.VERSION, payload)
        self.device.perform(handle(self.talk.backend, message, given))
        self.device.settle()

    def regions(self) -> list[RegionDescription]:
        return [
            RegionDescription(GuestAddr(0), LOW * PAGE, FrontendAddr(FRONTEND_BASE), 0),
            RegionDescription(
                GuestAddr(HIGH_PFN * PAGE),
                HIGH * PAGE,
                FrontendAddr(FRONTEND_BASE + (1 << 32)),
                LOW * PAGE,
            ),
        ]

    def share(self) -> None:
        if self.slots:
            for region in self.regions():
                self.tell(Request.ADD_MEM_REG, region.encode_single(), self.memory)
        else:
            table = wire.encode_memory_table(self.regions())
            self.tell(Request.SET_MEM_TABLE, table, self.memory, self.memory)
        self.has_high = True

    def start_rings(self) -> None:
        available, used, _ = area_offsets(RING_SIZE)
        for n, kick in enumerate(self.kicks):
            at = FRONTEND_BASE + n * PAGE
            addr = wire.VringAddr(n, 0, *map(FrontendAddr, (at, at + used, at + available)))
            self.tell(Request.SET_VRING_NUM, wire.VringState(n, RING_SIZE).encode())
            self.tell(Request.SET_VRING_ADDR, addr.encode())
            self.tell(Request.SET_VRING_KICK, n, kick)
            self.tell(Request.SET_VRING_ENABLE, wire.VringState(n, 1).encode())
        self.paused = False

    @precondition(lambda self: not self.paused)
    @rule()
    def pause(self) -> None:
        for n in range(len(self.kicks)):
            self.tell(Request.GET_VRING_BASE, wire.VringState(n, 0).encode())
            base = self.talk.backend.vrings[n].base
            require(base == self.rings[n].used_idx, "a base that is not used.idx", n, base)
        require(not self.device.running, "a device after the last ring stopped")
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        self.start_rings()

    @precondition(lambda self: self.slots)
    @rule()
    def plug_memory(self) -> None:
        request = Request.REM_MEM_REG if self.has_high else Request.ADD_MEM_REG
        self.tell(request, self.regions()[1].encode_single(), self.memory)
        self.has_high = not self.has_high

    @rule(wanted=st.integers(0, PAGES))
    def set_target(self, wanted: int) -> None:
        self.talk.backend.set_target(wanted * PAGE_SIZE)
        access = wire.ConfigAccess(4, 0, len(self.in_balloon).to_bytes(4, "little"))
        self.tell(Request.SET_CONFIG, access.encode())
        require(self.talk.backend.config.num_pages == wanted, "the target is lost")
        require(self.talk.backend.config.actual == len(self.in_balloon), "actual is lost")

    @rule()
    def device_dies(self) -> None:
        self.device.kill()
        self.device.settle()

    # --- the guest ----------------------------------------------------------------------------

    def offer(self, queue: BalloonQueue, parts: list[tuple[int, int]], *, write: bool) -> None:
        n = _QUEUES[queue]
        ring = self.rings[n]
        indices = [(self.offered[n] + place) % RING_SIZE for place in range(len(parts))]
        ring.offer(ring.chain(indices, *(((), parts) if write else (parts,))))
        self.offered[n] += len(parts)
        os.eventfd_write(self.kicks[n].fileno(), 1)

    def answered(self, queue: BalloonQueue) -> bool:
        """Lets the device work; whether it has then answered all of a queue's chains.

        A guest that keeps breaking chains is slowed down, so that takes its time.
        """
        ring, deadline = self.rings[_QUEUES[queue]], time.monotonic() + PATIENCE_S
        while self.device.running and ring.used_idx != ring.avail_idx:
            require(time.monotonic() < deadline, "a running device leaves chains", queue)
            self.device.serve()
        ring.collect()
        return ring.used_idx == ring.avail_idx

    def pfns(self, queue: BalloonQueue, numbers: list[int]) -> bool:
        """Sends PFNs in one buffer; whether they were answered."""
        at = (4 + _QUEUES[queue]) * PAGE
        content = b"".join(number.to_bytes(4, "little") for number in numbers)
        self.map[at : at + len(content)] = content
        self.offer(queue, [(at, len(content))], write=False)
        return self.answered(queue)

    def known(self, page: int) -> bool:
        return page < LOW or self.has_high

    @precondition(lambda self: not self.paused)
    @rule(pages=_PAGES, order=st.randoms(use_true_random=False))
    def inflate(self, pages: set[int], order: object) -> None:
        chosen = sorted(page for page in pages - self.in_balloon if self.known(page))
        if not chosen:
            return
        order.shuffle(chosen)  # type: ignore[attr-defined]  # Hypothesis's Random
        self.in_balloon |= set(chosen)
        self.dirty |= set(chosen)
        require(self.pfns(BalloonQueue.INFLATEQ, [pfn_of(p) for p in chosen]), "no answer")
        for page in chosen:
            kept = self.map[page * PAGE : (page + 1) * PAGE]
            require(not any(kept), "a page in the balloon is still there", page)

    @precondition(lambda self: not self.paused and self.in_balloon)
    @rule(share=st.integers(1, 4))
    def deflate(self, share: int) -> None:
        chosen = [p for p in sorted(self.in_balloon) if self.known(p)][::share]
        if not chosen:
            return
        require(self.pfns(BalloonQueue.DEFLATEQ, [pfn_of(p) for p in chosen]), "no answer")
        for page in chosen:
            self.map[page * PAGE : (page + 1) * PAGE] = _PATTERN[page]
        self.in_balloon -= set(chosen)
        self.dirty -= set(chosen)

    @precondition(lambda self: not self.paused)
    @rule(first=st.integers(OWN, LOW - 9), count=st.integers(0, 8), odd=st.integers(0, 1))
    def report(self, first: int, count: int, odd: int) -> None:
        pages = range(first, first + count)
        if self.in_balloon & set(pages):
            return
        # With an odd length the last page is not wholly inside.
        length = max(0, count * PAGE - odd)
        self.offer(BalloonQueue.REPORTING_VQ, [(first * PAGE, length)], write=True)
        require(self.answered(BalloonQueue.REPORTING_VQ), "no answer")
        for page in pages[: length // PAGE]:
            kept = self.map[page * PAGE : (page + 1) * PAGE]
            require(not any(kept), "a reported page is still there", page)
            self.map[page * PAGE : (page + 1) * PAGE] = _PATTERN[page]

    @precondition(lambda self: not self.paused)
    @rule(pages=_PAGES, bad=st.sampled_from([LOW, HIGH_PFN - 1, HIGH_PFN + HIGH, 2**32 - 1]))
    def name_a_page_outside(self, pages: set[int], bad: int) -> None:
        numbers = [*(pfn_of(page) for page in sorted(pages)), bad]
        require(self.pfns(BalloonQueue.INFLATEQ, numbers), "a broken chain is not answered")

    @precondition(lambda self: not self.paused)
    @rule(n=st.sampled_from([0, 1, 3]), flags=st.integers(0, 7), addr=st.integers(0, 2**64 - 1))
    def break_a_chain(self, n: int, flags: int, addr: int) -> None:
        ring = self.rings[n]
        # Far beyond memory, whatever else is wrong with it.
        ring.describe(0, addr | 1 << 63, 64, flags, 0)
        ring.offer(0)
        os.eventfd_write(self.kicks[n].fileno(), 1)
        queue = next(queue for queue, index in _QUEUES.items() if index == n)
        require(self.answered(queue), "a broken chain is not answered", n, flags)

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def every_page_is_as_the_guest_left_it(self) -> None:
        VmAgainstBalloond.steps += 1
        for page in range(OWN, PAGES):
            if page not in self.dirty:
                kept = self.map[page * PAGE : (page + 1) * PAGE]
                require(kept == _PATTERN[page], "a page is lost", page)

    @invariant()
    def a_device_runs_unless_paused(self) -> None:
        require(self.device.running != self.paused, "a device", self.device.running, self.paused)

    def teardown(self) -> None:
        if not hasattr(self, "device"):
            return
        self.device.stop()
        self.talk.close()
        for fd in (self.memory, *self.kicks):
            fd.close()
        self.rings.clear()
        del self.device, self.map


def campaign(seconds: float, seed_number: int, folder: Path) -> Outcome:
    """Plays once, then until the time is over or something is found; Hypothesis shrinks that."""
    keep_own_directory()  # It stays open from its first use on.
    outcome, turn, end = Outcome(), 0, time.monotonic() + seconds
    again = f"python -m tests.fuzz.timed state_machine {seconds:.0f} {seed_number}"
    while turn == 0 or (time.monotonic() < end and not outcome.findings):
        machine = seed(seed_number + turn)(VmAgainstBalloond)
        fds_before = open_fds()
        try:
            run_state_machine_as_test(machine, settings=_settings(10, 30))
            # A mapping holds a descriptor, and a dead device's mappings wait for the collector.
            gc.collect()
            require(open_fds() <= fds_before, "file descriptors left open", open_fds())
        except Exception as err:
            kind = "invariant" if isinstance(err, InvariantBrokenError) else "crash"
            what, details = f"{type(err).__name__}: {err}", traceback.format_exc()[-6000:]
            outcome.findings.append(Finding("state_machine", kind, what, again, details))
        turn += 1
    outcome.executions = VmAgainstBalloond.steps
    return outcome


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )

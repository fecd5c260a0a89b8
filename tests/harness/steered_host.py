"""A host's policy without jitter, a clock, and guests that give what they are asked for."""

from collections.abc import Mapping

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_events import Added, Event, HostStep, Looked, Moved, Sampled, Woke
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

A, B = VmId(1, "vm1"), VmId(2, "vm2")
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""

LOW = Reading(available_mib=10, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)
WELL = Figures(0.0, 600 * MIB, 300 * MIB, 0, 0, 0, 0)
SEED = Terms(VmSettings(profile=Profile.SEED))
CAREFUL = Terms(VmSettings())


class SteeredHost:
    """A host with VMs of 1 GiB.

    Args:
        terms: the VMs' terms.
        vm_mem_bytes: their size.

    Attributes:
        gives: whether guests give what they are asked for.
        polls: whether the source is polled each second; False: it has an alarm, which knows the
            margin alone.
        figures: the statistics that careful guests send each second.
        over: all that was over.
    """

    def __init__(self, terms: Mapping[VmId, Terms], vm_mem_bytes: int = GIB) -> None:
        settings = PolicySettings(
            recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
        )
        self.objections: dict[VmId, Reason] = {}
        self.policy = HostPolicy(settings, lambda: 0.0, lambda vm, _level: self.objections.get(vm))
        self.now_s = 1000.0
        self.seen = PLENTY
        self.gives = self.polls = True
        self.figures = dict.fromkeys(terms, WELL)
        self.over: list[object] = []
        self.wake_at_s: float | None = None
        self.listens = False
        for vm, vm_terms in terms.items():
            self.step(Added(vm, vm_mem_bytes, 0, vm_terms))

    def step(self, event: Event) -> HostStep:
        step = self.policy.step(event, self.now_s)
        self.over += step.over
        self.wake_at_s, self.listens = step.wake_at_s, step.listen
        if self.gives:
            for vm, target_bytes in step.targets:
                self.moved(vm, target_bytes)
        return step

    def moved(self, vm: VmId, balloon_bytes: int) -> None:
        """A guest's balloon has another size."""
        if self.policy.guard(vm) is None:
            self.policy.note_actual(vm, balloon_bytes)
        else:
            self.step(Moved(vm, balloon_bytes))

    def live(self, seconds: float) -> None:
        """Lets time go by as a governor does: deadlines when they are due, a poll each second."""
        end_s = self.now_s + seconds
        poll_s = self.now_s
        while True:
            wake_at_s = self.wake_at_s
            due_s = poll_s if wake_at_s is None else min(poll_s, max(wake_at_s, self.now_s))
            if due_s >= end_s:
                self.now_s = end_s
                return
            self.now_s = due_s
            if wake_at_s is not None and wake_at_s <= due_s:
                self.step(Woke(self.seen))
                continue
            poll_s += 1.0
            for vm, figures in self.figures.items():
                if self.policy.governs(vm) and self.policy.guard(vm) is not None:
                    self.step(Sampled(vm, figures._replace(at_s=self.now_s)))
            if self.listens and self.polls:
                self.step(Looked(self.seen))

    def target(self, vm: VmId = A) -> int:
        """The target that a VM was sent last."""
        return self.policy.target_bytes(vm)

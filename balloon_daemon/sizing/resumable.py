"""A host's policy from whose present state another one can go on, for a trace that begins midway.

Pure. ``Restored`` is for another balloond, whose VMs get a decision and a target; ``Found`` causes
neither, and also has the last target and the state of the guest's protection.
"""

import math

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.host_events import Found
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.outcome import Outcome


class ResumablePolicy(HostPolicy):
    """A host's policy that tells the state of all its VMs, and can take over VMs in the state in
    which another policy has left them."""

    def found(self) -> list[Found]:
        """All VMs as they are: first those that listen, in the order in which low memory steps
        them, as each step draws a random number; then the others as they came."""
        look_at_s = None if self._look_at_s == math.inf else self._look_at_s
        return [
            Found(
                vm,
                row.vm_mem_bytes,
                row.policy.state(),
                row.actual_bytes,
                row.terms,
                row.told_bytes,
                row.policy.held,
                None if row.guard is None else row.guard.lasting(),
                look_at_s,
                (row.patience.waits_up, row.patience.waited_at_s, row.patience.waits_down),
            )
            for vm, row in (self._listening | self._rows).items()
        ]

    def resume(self, found: Found, now_s: float) -> None:
        """Governs a VM from now on as another policy did; decides nothing.

        Args:
            found: the VM.
            now_s: the present time.

        Raises:
            StateError: the VM has a policy already, or no policy can be in that state.
        """
        self._require_new(found.vm)
        if found.terms.is_careful is not (found.lasting is not None):
            raise StateError(f"{found.vm} is protected, or not, against its profile")
        outcome = Outcome(self._deadlines, self._priorities, now_s)
        row = self._admission.resume(found, outcome)
        policy = row.policy
        if row.guard is not None and found.lasting is not None:
            row.guard.told(found.target_bytes, now_s)
            row.guard.resume(found.lasting)
        self._look_at_s = math.inf if found.look_at_s is None else found.look_at_s
        if policy.listening and not found.terms.is_adaptive:
            self._listening[found.vm] = row
        self._deadlines.queue(found.vm, row)

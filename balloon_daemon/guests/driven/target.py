"""Which balloon size a driven VM's VMM is told, and which part of its balloon is balloond's.

Pure. A VM may have a balloon before balloond changes it: its *base*. The controller does not see
the base: for the controller the VM's size is all of its memory less the base, and the balloon's
size is what exceeds the base. So the controller decides only about memory that balloond may take
and must give back. Until balloond sends a first target, the base is the size of the VM's balloon,
which somebody else may change; then the base is fixed until all that balloond took is given back.
"""

from balloon_daemon.units import MIB, PAGE_SIZE

LEAST_LEFT_BYTES = 256 * MIB
"""Each guest keeps so much, or half of its memory without its base if that is less, whatever the
target. VMMs do not check targets: QEMU accepts a target that leaves the guest a single page. No
policy's target leaves less than this, but it may be too large for a VM whose memory was unplugged
since the last sample. The half is of the memory without the base, because that is the VM's size to
the policy, which may ask for half of it: a smaller limit would make the balloon count as
stalled."""


class BalloonTarget:
    """The target of one VM's balloon.

    Args:
        vm_mem_bytes: all of the VM's memory.
        balloon_bytes: the size of its balloon; None: not known.
        base_bytes: the base that an earlier connection has noted; None: balloond has not changed
            this balloon.
        is_same: whether the VM is surely the one whose base was noted. If the VMM's process is not
            known, the base may be that of another VM, which ran at the same socket before.
    """

    def __init__(
        self,
        vm_mem_bytes: int,
        balloon_bytes: int | None,
        base_bytes: int | None,
        *,
        is_same: bool = True,
    ) -> None:
        self.vm_mem_bytes = vm_mem_bytes
        self.balloon_bytes = balloon_bytes
        self.changed = base_bytes is not None
        """Whether balloond has changed the balloon and not given all of it back."""
        self.base_bytes = (balloon_bytes or 0) if base_bytes is None else base_bytes
        """The size of the balloon that the VM had before balloond changed it."""
        self._is_doubtful = base_bytes is not None and not is_same
        """Whether the noted base may be another VM's, and no size of this VM's balloon is known
        yet."""
        self._trust_no_more_than(balloon_bytes)
        self._wanted_bytes = 0
        self._sent_bytes: int | None = None
        self._largest_bytes = 0
        """The balloon's largest size since a target was sent."""
        self._stands = False
        """Whether the balloon's last two sizes since a target was sent are the same."""
        self.most_bytes: int | None = None
        """The largest size, beyond the base, that the VMM is told for now; None: no limit."""

    @property
    def size_bytes(self) -> int:
        """The VM's memory without its base."""
        return max(0, self.vm_mem_bytes - self.base_bytes)

    @property
    def taken_bytes(self) -> int:
        """The balloon's size beyond its base; 0 where the balloon's size is not known."""
        return max(0, (self.balloon_bytes or 0) - self.base_bytes)

    @property
    def asked_bytes(self) -> int:
        """The size, beyond the base (the balloon from before balloond), to tell the VMM now."""
        most = self.most_bytes
        return self._wanted_bytes if most is None else min(self._wanted_bytes, most)

    def want(self, target_bytes: int) -> None:
        """Sets the wanted size, beyond the base; the first size above 0 fixes the base.

        The same size is sent again if the guest's driver has stopped short of it: Windows' and
        OpenBSD's drivers stop at the first page that they cannot get, and try again only at the
        next target. The same size is not sent again if the balloon has shrunk since it was sent:
        the guest has taken pages back for lack of memory (deflate on OOM), and the same target
        would make its driver inflate the balloon again.
        """
        if target_bytes == self._wanted_bytes and self._has_stopped_short:
            self._sent_bytes = None
        self._wanted_bytes = max(0, target_bytes)
        self.changed |= target_bytes > 0

    def take(self, vm_mem_bytes: int, balloon_bytes: int | None) -> None:
        """Notes the VM's figures; None: the balloon's size is not known."""
        self.vm_mem_bytes = vm_mem_bytes
        self._stands = balloon_bytes == self.balloon_bytes
        self.balloon_bytes = balloon_bytes
        self._largest_bytes = max(self._largest_bytes, balloon_bytes or 0)
        self._trust_no_more_than(balloon_bytes)
        if balloon_bytes is None:
            return
        given_back = self._wanted_bytes == self._sent_bytes == 0
        if given_back and balloon_bytes <= self.base_bytes:
            self.changed = False
        if not self.changed:
            self.base_bytes, self._sent_bytes = balloon_bytes, None

    def due(self) -> int | None:
        """The whole balloon's size that the VMM is to be told; None: the VMM was told already, or
        the noted base may be another VM's and no size of this VM's balloon is known yet."""
        if self._is_doubtful or not self.changed or self.asked_bytes == self._sent_bytes:
            return None
        return self._told_bytes

    def sent(self, asked_bytes: int) -> None:
        """Notes that the VMM has taken the target for these ``asked_bytes``."""
        self._sent_bytes = asked_bytes
        self._largest_bytes, self._stands = self.balloon_bytes or 0, False

    @property
    def is_told(self) -> bool:
        """Whether the VMM has taken the latest target."""
        return self.due() is None

    def _trust_no_more_than(self, balloon_bytes: int | None) -> None:
        """Limits a base that may be another VM's to the first known size of this VM's balloon.

        balloond never makes a balloon smaller than the VM's base, so a base that is larger than
        the balloon is another VM's. To give back to that base would inflate this VM's balloon.
        """
        if self._is_doubtful and balloon_bytes is not None:
            self.base_bytes = min(self.base_bytes, balloon_bytes)
            self._is_doubtful = False

    @property
    def _told_bytes(self) -> int:
        """The whole balloon's size for ``asked_bytes``, in whole pages."""
        if self.asked_bytes:
            left_bytes = min(LEAST_LEFT_BYTES, self.size_bytes // 2)
            most_bytes = max(self.base_bytes, self.vm_mem_bytes - left_bytes)
            size_bytes = min(self.base_bytes + self.asked_bytes, most_bytes)
        else:
            # Give all back, but never grow the balloon to its base: if it is smaller than the
            # base, somebody else has shrunk it, or the guest needed the memory.
            known = self.base_bytes if self.balloon_bytes is None else self.balloon_bytes
            size_bytes = min(self.base_bytes, known)
        return size_bytes // PAGE_SIZE * PAGE_SIZE

    @property
    def _has_stopped_short(self) -> bool:
        """Whether the balloon stands still below the target that its VMM was told, and has not
        shrunk since then."""
        if not self.is_told or not self._stands or self.balloon_bytes is None:
            return False
        return self._largest_bytes <= self.balloon_bytes < self._told_bytes

"""How much memory a VM has: the least of the sizes that are known.

Pure. A memory table lists the VM's shared mappings, which need not be its RAM: a shared-memory
device or virtio-mem's unplugged part looks like RAM there, and a DIMM that is not shared is
missing. The guest reports its memory (VIRTIO_BALLOON_S_MEMTOT), but that number may or may not
include the balloon: Linux's number falls as the balloon grows, unless DEFLATE_ON_OOM was
acknowledged. Whether a guest's number includes the balloon is learnt by comparing its reports.
"""

from dataclasses import dataclass

from balloon_daemon.events import MemoryNotFreeable, MemoryOutOfReach, SizesDiffer
from balloon_daemon.units import MIB, VmId

LEAST_TOTAL_BYTES = 32 * MIB
MOST_TOTAL_BYTES = 1 << 50
"""A guest's total outside this range is ignored: it is 0, all ones, or not in bytes."""

KERNEL_BYTES, KERNEL_SHARE, KERNEL_MOST_BYTES = 128 * MIB, 64, 512 * MIB
"""A guest's kernel keeps some memory for itself (struct page alone is a 64th) and leaves it out of
the total. So if the total is less than the size of the regions by at most this (128 MiB and a
64th, 512 MiB at most), all regions count as RAM. 512 MiB is half of the GiB that the balloon
policy leaves to a large VM. If more is missing, a region may be no RAM."""

NOISE_SHARE = 16
"""A guest's total that differs from its last one by less than a 16th changes nothing: ``actual``
and the statistics are not of the same moment."""

TELLING_BALLOON_BYTES = 64 * MIB
"""With a balloon of this size, the guest's total shows whether it includes the balloon."""


@dataclass(slots=True)
class VmSize:
    """The known facts about one VM's size.

    Attributes:
        flag_bytes: the size given by ``--vm-mem``; None: not given.
        keeps_total: whether the guest's total stays the same as its balloon grows; assumed from
            the guest's features until its reports show it.
        ram_bytes: the memory regions that may be RAM, in whole MiB.
        has_unnameable: True: part of the VM's memory has no page frame number of 32 bits, so the
            VM can have no balloon.
        guest_bytes: the guest's own total with the balloon; None: it reported no plausible total.
    """

    flag_bytes: int | None
    keeps_total: bool = True
    ram_bytes: int = 0
    has_unnameable: bool = False
    guest_bytes: int | None = None
    _learnt: bool = False

    def take_table(self, ram_bytes: int, *, has_unnameable: bool) -> None:
        """Notes the size of the present memory table."""
        # Round up to whole MiB: a PC's memory table lacks the 128 KiB of VGA memory below 1 MiB.
        self.ram_bytes = -(-ram_bytes // MIB) * MIB
        self.has_unnameable = has_unnameable

    def expect(self, *, keeps_total: bool) -> None:
        """Notes that a driver has acknowledged other features: ``keeps_total`` is learnt anew."""
        self.keeps_total, self._learnt = keeps_total, False

    def take_total(self, total_bytes: int, balloon_bytes: int) -> None:
        """Notes the guest's total, reported while its balloon had this size."""
        if not LEAST_TOTAL_BYTES <= total_bytes <= MOST_TOTAL_BYTES:
            return
        last = self.guest_bytes
        if last is not None and balloon_bytes >= TELLING_BALLOON_BYTES and not self._learnt:
            off, off_with = abs(total_bytes - last), abs(total_bytes + balloon_bytes - last)
            # Either the reported total or that total plus the balloon must be near the earlier
            # total. If neither is, the VM's memory itself has changed, and the report does not
            # show which of the two the guest reports.
            fits = min(off, off_with) < last // NOISE_SHARE
            if fits and abs(off - off_with) >= balloon_bytes // 2:
                self.keeps_total, self._learnt = off < off_with, True
        said = total_bytes if self.keeps_total else total_bytes + balloon_bytes
        if last is None or abs(said - last) >= last // NOISE_SHARE:
            self.guest_bytes = said

    @property
    def size_bytes(self) -> int:
        """The size from which the balloon's maximum follows; 0 where there can be no balloon."""
        if self.has_unnameable:
            return 0
        size = self.ram_bytes
        guest = self.guest_bytes
        kernels = min(KERNEL_BYTES + size // KERNEL_SHARE, KERNEL_MOST_BYTES)
        if guest is not None and guest < size - kernels:
            size = guest
        return size if self.flag_bytes is None else min(size, self.flag_bytes)

    def doubts(self, vm: VmId) -> MemoryOutOfReach | MemoryNotFreeable | SizesDiffer | None:
        """The contradiction between the known sizes, as an event; None where there is none."""
        size = self.size_bytes
        if self.has_unnameable:
            return MemoryOutOfReach(vm)
        if not self.ram_bytes:
            return MemoryNotFreeable(vm)
        said = [self.ram_bytes] if self.flag_bytes is None else [self.flag_bytes, self.ram_bytes]
        guest = None if size in said else size
        if all(abs(found - size) < MIB for found in said):
            return None
        return SizesDiffer(vm, self.flag_bytes, self.ram_bytes, guest, size)

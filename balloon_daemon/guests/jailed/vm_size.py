"""How much memory a VM has, as far as anybody says: the least of what is known.

Pure. A memory table is the VM's shared mappings, which need not be its RAM: a shared-memory device
or virtio-mem's unplugged part looks like RAM in there, and a DIMM that is not shared is missing.
The guest says how much it has (VIRTIO_BALLOON_S_MEMTOT), but while it is ballooned that number may
or may not contain the balloon: Linux's falls as the balloon grows unless DEFLATE_ON_OOM was
acknowledged. So which of the two it is gets learnt from what it said before.
"""

from dataclasses import dataclass

from balloon_daemon.events import MemoryNotFreeable, MemoryOutOfReach, SizesDiffer
from balloon_daemon.units import MIB, VmId

LEAST_TOTAL_BYTES = 32 * MIB
MOST_TOTAL_BYTES = 1 << 50
"""Outside of these a guest's total is no fact: 0, all ones, or another unit than bytes."""

KERNEL_BYTES, KERNEL_SHARE, KERNEL_MOST_BYTES = 128 * MIB, 64, 512 * MIB
"""A guest that says it has all of its RAM but this (128 MiB and a 64th of it, 512 MiB at most) has
all of it: its kernel keeps some for itself (struct page alone is a 64th) and counts it nowhere.
Never more than half of the GiB that a large VM keeps: what is missing may as well be no RAM."""

NOISE_SHARE = 16
"""A guest's total that differs by less than this part says nothing new: ``actual`` and the
statistics are not of the same moment."""

TELLING_BALLOON_BYTES = 64 * MIB
"""A balloon of this size shows whether the guest's total contains it."""


@dataclass(slots=True)
class VmSize:
    """What is known of one VM's size.

    Attributes:
        flag_bytes: what ``--vm-mem`` says; None: nothing.
        keeps_total: by its features: whether the guest's total stays as its balloon grows.
        ram_bytes: the memory regions that look like RAM, in whole MiB.
        has_unnameable: part of it has no page frame number of 32 bits, so it can have no balloon.
        guest_bytes: what the guest says it has, balloon included; None: nothing that makes sense.
    """

    flag_bytes: int | None
    keeps_total: bool = True
    ram_bytes: int = 0
    has_unnameable: bool = False
    guest_bytes: int | None = None
    _learnt: bool = False

    def take_table(self, ram_bytes: int, *, has_unnameable: bool) -> None:
        """The memory table is this now."""
        # A PC's memory table lacks the 128 KiB of VGA below 1 MiB: a VM is of whole MiB.
        self.ram_bytes = -(-ram_bytes // MIB) * MIB
        self.has_unnameable = has_unnameable

    def expect(self, *, keeps_total: bool) -> None:
        """A driver has acknowledged other features: what its total is has to be learnt anew."""
        self.keeps_total, self._learnt = keeps_total, False

    def take_total(self, total_bytes: int, balloon_bytes: int) -> None:
        """The guest says that it has so much, while its balloon is so large."""
        if not LEAST_TOTAL_BYTES <= total_bytes <= MOST_TOTAL_BYTES:
            return
        last = self.guest_bytes
        if last is not None and balloon_bytes >= TELLING_BALLOON_BYTES and not self._learnt:
            off, off_with = abs(total_bytes - last), abs(total_bytes + balloon_bytes - last)
            # One of the two must be what it said before: else its memory has changed as well.
            fits = min(off, off_with) < last // NOISE_SHARE
            if fits and abs(off - off_with) >= balloon_bytes // 2:
                self.keeps_total, self._learnt = off < off_with, True
        said = total_bytes if self.keeps_total else total_bytes + balloon_bytes
        if last is None or abs(said - last) >= last // NOISE_SHARE:
            self.guest_bytes = said

    @property
    def size_bytes(self) -> int:
        """The size that a balloon's maximum goes by; 0 where there can be no balloon."""
        if self.has_unnameable:
            return 0
        size = self.ram_bytes
        guest = self.guest_bytes
        kernels = min(KERNEL_BYTES + size // KERNEL_SHARE, KERNEL_MOST_BYTES)
        if guest is not None and guest < size - kernels:
            size = guest
        return size if self.flag_bytes is None else min(size, self.flag_bytes)

    def doubts(self, vm: VmId) -> MemoryOutOfReach | MemoryNotFreeable | SizesDiffer | None:
        """What speaks for another size than the one that counts; None where nothing does."""
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

"""How much of one VM's memory may be asked for: its size, and what speaks against more.

Runs in the controller. Judges by what the kernel says of the VM's memory files (they are shared
memory, so it answers by itself), by what the guest's device has counted and by what the guest says
of itself; nothing of it is believed beyond a number in its range.
"""

from balloon_daemon.guests.jailed.gain import Cause, Gain, Loss
from balloon_daemon.guests.jailed.introduction import NEVER_FREED_REMEDY, introduce_memory
from balloon_daemon.guests.jailed.vm_size import VmSize
from balloon_daemon.linux.memory import FileUse, memory_file_use
from balloon_daemon.rate_limit import OnceEach
from balloon_daemon.records.log import EventLog
from balloon_daemon.sizing.balloon_policy import Reason
from balloon_daemon.tube.messages import Progress
from balloon_daemon.units import MIB, PAGE_SIZE, format_size
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.messages import RegionDescription
from balloon_daemon.virtio.balloon import BalloonFeature, StatTag

SLACK_BYTES = 16 * MIB
SLACK_SHARE = 64
"""What a VM's files may hold above its size less its balloon, and nothing is wrong: ``actual`` and
the files are not looked at in the same moment."""

NEWS = 32
"""Memory tables, and sizes that contradict each other, that are said of one VM, each once: a guest
may name another total with each report."""


class BalloonLimits:
    """The limits of one VM's balloon.

    Args:
        backend: knows the memory table, the features and ``actual``.
        flag_bytes: what ``--vm-mem`` says; None: nothing.
        log: bound to the guest.
    """

    def __init__(self, backend: Backend, flag_bytes: int | None, log: EventLog) -> None:
        self._backend = backend
        self._log = log
        self._size = VmSize(flag_bytes)
        self._gain = Gain()
        self._features = -1
        self._introduced: list[tuple[RegionDescription, str]] = []
        self._tables, self._sizes = OnceEach(NEWS), OnceEach(NEWS)
        self._holding = self._said_holding = self._said_no_channel = False
        self._said_fruitless = False

    @property
    def size_bytes(self) -> int:
        """The VM's size that its balloon's maximum goes by; 0: it can have no balloon."""
        return self._size.size_bytes

    @property
    def knows_no_total(self) -> bool:
        """Whether the guest has not said yet how much memory it has."""
        return self._size.guest_bytes is None

    # --- size ---------------------------------------------------------------------------------

    def look_at_memory(self) -> None:
        """Takes the memory table as it is now, and says what is worth knowing of it."""
        memory = self._backend.memory
        if self._backend.acknowledged != self._features:
            self._features = self._backend.acknowledged
            keeps = bool(self._features & BalloonFeature.DEFLATE_ON_OOM)
            self._size.expect(keeps_total=keeps)
        # Not by descriptors: a front-end that sends its table anew with each start has others.
        table = [(r.description, r.never_freed) for r in memory.regions]
        if table == self._introduced:
            return
        self._introduced = table
        self._gain.forgive()
        self._holding = self._said_holding = self._said_fruitless = False
        self._size.take_table(memory.ram_bytes, has_unnameable=memory.has_unnameable)
        if self._backend.channel is None and not self._said_no_channel:
            self._said_no_channel = True
            self._log.warning(
                "vmm", "the VMM gives no back-end channel: no target can be signalled"
            )
        if self._tables.admit(str(table)):
            introduce_memory(memory.regions, self._log)
        self._say_size()

    def take_stats(self, stats: dict[int, int]) -> None:
        """Takes the guest's statistics, by tag."""
        total = stats.get(StatTag.MEMTOT)
        if total is not None:
            self._size.take_total(total, self._backend.config.actual * PAGE_SIZE)
            self._say_size()

    def assume(self, size_bytes: int) -> None:
        """Another controller went by this size, perhaps because the guest had said so.

        Only until its next statistics: of a guest that sends none it would stay for good.
        """
        if size_bytes and self._backend.acknowledged & BalloonFeature.STATS_VQ:
            self._size.guest_bytes = size_bytes

    def _say_size(self) -> None:
        said = self._size.describe()
        if said and self._sizes.admit(said):
            self._log.warning("size", said)

    # --- gain ---------------------------------------------------------------------------------

    def take_progress(self, done: Progress) -> None:
        """Takes what the guest's devices have done so far."""
        was_fruitless = self._gain.fruitless
        for loss in self._gain.take(done):
            self._log.warning("lost", self._words(loss), cause=loss.cause.value)
        # A device that was taken over may have it come and go as often as it likes.
        if self._gain.fruitless and not was_fruitless and not self._said_fruitless:
            self._said_fruitless = True
            self._log.warning(
                "lost", "what it gives does not come back to the host: not asking it for more"
            )

    def _words(self, loss: Loss) -> str:
        size = format_size(loss.pages * PAGE_SIZE)
        match loss.cause:
            case Cause.NEVER_FREED if self._backend.memory.has_unnameable:
                return f"{size} that it gave are not freed: its page numbers cannot be trusted"
            case Cause.NEVER_FREED:
                reasons = {r.never_freed for r in self._backend.memory.regions if r.never_freed}
                why = ", ".join(sorted(reasons)) or "cannot be freed"
                return f"{size} that it gave are not freed, as their file {why}; " + (
                    NEVER_FREED_REMEDY
                )
            case Cause.NOT_SHARED:
                return (
                    f"{size} that it gave are in no memory that its VMM shares with balloond, so "
                    "they cannot be freed; share all of the VM's memory (share=on for each memory "
                    "back-end, plugged ones too)"
                )
            case Cause.REFUSED:
                return f"{size} that it gave are not freed: the kernel refused"
            case Cause.IN_PIECES:
                return (
                    f"{size} that it gave are not freed: they are parts of huge pages, which the "
                    "kernel frees only as a whole; give the VM memory of small pages"
                )

    def not_freed_bytes(self) -> int:
        """What the VM's files hold though its balloon does too, in bytes; 0 within the slack.

        A guest can use its size less its balloon at most, so whatever its files hold beyond that
        the balloon has taken from the guest and not given to the host.
        """
        files = self._files()
        size = sum(file.size_bytes for file in files)
        allowed = size - self._backend.config.actual * PAGE_SIZE
        over = sum(file.held_bytes for file in files) - allowed
        return over if over > max(SLACK_BYTES, size // SLACK_SHARE) else 0

    def judge(self) -> int:
        """Compares the balloon with what the host has got, now that a target is reached.

        Returns:
            Bytes of the balloon that the host has not got; said once.
        """
        over = self.not_freed_bytes()
        self._holding = over > 0
        if over and not self._said_holding:
            self._said_holding = True
            self._log.warning(
                "lost",
                f"the host has not got {format_size(over)} of its balloon: the VM's memory files "
                "hold them still (huge pages given up in parts, pages pinned for a device, or a "
                "copy that something else reads); not asking it for more",
            )
        return over

    # --- what speaks against more -------------------------------------------------------------

    def against_more(self, level: int) -> Reason | None:
        """Why the guest should not be asked for more just now; None: nothing speaks against it.

        Args:
            level: of its balloon; an empty one is always worth another try.
        """
        if level == 0:
            self._gain.forgive()
            self._holding = False
        # What fills a VM's files again, a snapshot perhaps, may have come to its end.
        self._holding = self._holding and self.not_freed_bytes() > 0
        if self._holding or self._gain.fruitless:
            return Reason.FRUITLESS
        files = self._files()
        for device in {file.identity[0] for file in files if file.limit_bytes is not None}:
            there = [file for file in files if file.identity[0] == device]
            missing = sum(file.size_bytes - file.held_bytes for file in there)
            if missing > there[0].free_bytes:
                return Reason.NO_ROOM
        return None

    def _files(self) -> list[FileUse]:
        """The files behind the memory that can be freed, each once."""
        uses = {}
        for region in self._backend.memory.regions:
            if region.fd is not None and not region.never_freed:
                use = memory_file_use(region.fd.fileno())
                uses[use.identity] = use
        return list(uses.values())

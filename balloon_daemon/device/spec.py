"""A device's settings as values, made before the fork, and the meaning of its exit code."""

from collections.abc import Callable, Iterator

from balloon_daemon.linux import jail
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue

EXIT_INTERNAL_ERROR = 70
"""sysexits.h, EX_SOFTWARE: a bug of ours, or guest memory that cannot be mapped; the death record
on standard error says which."""

STANDARD_ERROR = 2


class RegionSpec(NamedTuple):
    """A memory region.

    Attributes:
        fd: the caller's descriptor of its file; None: the region is not to be mapped, so its pages
            pass the address checks but are never removed, and no ring or buffer in it can be read.
        freed: whether pages that the guest gives up here can be removed.
    """

    guest_addr: GuestAddr
    frontend_addr: FrontendAddr
    size_bytes: int
    mmap_offset_bytes: int
    page_bytes: int
    fd: int | None
    freed: bool = True


class VringSpec(NamedTuple):
    """A vring to serve; its descriptors stay the caller's."""

    index: int  # type: ignore[assignment] # hides tuple.index(), which nobody calls
    queue: BalloonQueue
    size: int
    descriptors: FrontendAddr
    available: FrontendAddr
    used: FrontendAddr
    kick_fd: int
    call_fd: int | None


class DeviceSpec(NamedTuple):
    """The whole description of a device, complete before the fork.

    Attributes:
        name: for ``ps`` and ``top``; the kernel keeps 15 bytes.
        channel_fd: the back-end channel; None: the VMM cannot be told of a new target.
        config_change: CONFIG_CHANGE_MSG, encoded.
        identity: the user to become where the controller is root.
        must_tell_host: the driver acknowledged VIRTIO_BALLOON_F_MUST_TELL_HOST.
        earned: how much of its CPU allowances the guest has at the beginning, from 0 to 1.
        rehearse: True: before its end the device allocates memory of each kind that CPython has
            (``rehearsal``), naming each step on its standard error.
        frees_reported: False where the pages that the guest reports must keep what is in them.
        pfns_name_pages: False where the guest has pages beyond the range of 32-bit page frame
            numbers: then a number may be the low 32 bits of a greater one, and no page of the
            balloon is removed.
    """

    name: str
    regions: tuple[RegionSpec, ...]
    vrings: tuple[VringSpec, ...]
    channel_fd: int | None
    config_change: bytes
    identity: jail.Identity | None
    must_tell_host: bool
    earned: float = 1.0
    rehearse: bool = False
    frees_reported: bool = True
    pfns_name_pages: bool = True

    def fds(self) -> Iterator[int]:
        """Every descriptor in this spec, in a fixed order."""
        yield from (region.fd for region in self.regions if region.fd is not None)
        for vring in self.vrings:
            yield vring.kick_fd
            if vring.call_fd is not None:
                yield vring.call_fd
        if self.channel_fd is not None:
            yield self.channel_fd

    def with_fds(self, number_of: Callable[[int], int]) -> "DeviceSpec":
        """The same spec with other numbers for its descriptors.

        Args:
            number_of: called with each of ``fds``, in that order; returns its new number.
        """

        def renumbered(fd: int | None) -> int | None:
            return None if fd is None else number_of(fd)

        return self._replace(
            regions=tuple(region._replace(fd=renumbered(region.fd)) for region in self.regions),
            vrings=tuple(
                vring._replace(kick_fd=number_of(vring.kick_fd), call_fd=renumbered(vring.call_fd))
                for vring in self.vrings
            ),
            channel_fd=renumbered(self.channel_fd),
        )

"""The spec of a guest's next device, from the back-end's present state."""

from collections.abc import Sequence

from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.linux.jail import Identity
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ReadyVring
from balloon_daemon.vhost_user.messages import CONFIG_CHANGE_MSG
from balloon_daemon.virtio.balloon import BalloonFeature

EARNED_AFTER_S = 60.0
"""If a guest's last device began at least so long ago, the next device begins with full CPU
allowances (``device.pace``), else with a proportional part of them: a guest can have its device
restarted as often as it likes, and must not get new allowances by that."""


def earned(since_s: float) -> float:
    """The part of its CPU allowances with which a guest's next device begins, from 0 to 1.

    Args:
        since_s: seconds since its last device began to serve it.
    """
    return min(1.0, since_s / EARNED_AFTER_S)


def frees_reported(backend: Backend) -> bool:
    """Whether the pages that the guest reports may be removed: it reads zeros in them afterwards.

    With PAGE_POISON a device must not change a reported page to another value than ``poison_val``
    (virtio 1.3, 5.5.6.7); without it the driver treats the page as uninitialized memory. Pages in
    the balloon may be removed in either case: with PAGE_POISON the driver itself fills them with
    ``poison_val`` when it takes them back (5.5.6.6).
    """
    poisons = backend.acknowledged & BalloonFeature.PAGE_POISON
    return not poisons or backend.config.poison_val == 0


def device_spec(
    backend: Backend,
    served: Sequence[ReadyVring],
    name: str,
    since_s: float,
    identity: Identity | None,
) -> DeviceSpec:
    """The next device's spec. The back-end still owns, and closes, the descriptors in the spec.

    Args:
        backend: has the guest's memory, the back-end channel and the features.
        served: the vrings for the device.
        name: the VM's name, for ``ps``.
        since_s: seconds since the guest's last device began to serve it.
        identity: the user that the device becomes; None: it keeps its user.
    """
    regions = tuple(
        RegionSpec(
            region.description.guest_addr,
            region.description.frontend_addr,
            region.description.size_bytes,
            region.description.mmap_offset_bytes,
            region.page_bytes,
            None if region.fd is None else region.fd.fileno(),
            not region.never_freed,
        )
        for region in backend.memory.regions
    )
    vrings = tuple(
        VringSpec(
            vring.index,
            vring.queue,
            vring.size,
            vring.addr.descriptors,
            vring.addr.available,
            vring.addr.used,
            vring.kick.fileno(),
            None if vring.call is None else vring.call.fileno(),
        )
        for vring in served
    )
    channel = backend.channel
    return DeviceSpec(
        name=f"balloon-{name}",
        regions=regions,
        vrings=vrings,
        channel_fd=None if channel is None else channel.fileno(),
        config_change=CONFIG_CHANGE_MSG,
        identity=identity,
        must_tell_host=bool(backend.acknowledged & BalloonFeature.MUST_TELL_HOST),
        earned=earned(since_s),
        frees_reported=frees_reported(backend),
        pfns_name_pages=not backend.memory.has_unnameable,
    )

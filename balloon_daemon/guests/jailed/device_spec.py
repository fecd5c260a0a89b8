"""What a guest's next device is made of, as its back-end knows it now."""

from collections.abc import Sequence

from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.linux.jail import Identity
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ReadyVring
from balloon_daemon.vhost_user.messages import CONFIG_CHANGE_MSG
from balloon_daemon.virtio.balloon import BalloonFeature

EARNED_AFTER_S = 60.0
"""A guest whose last device began so long ago has all of its next one's allowances, and a part of
them before: it can have its device made anew as often as it likes."""


def earned(since_s: float) -> float:
    """How much of its allowances a guest has, from 0 to 1.

    Args:
        since_s: how long ago its last device began to serve it, in seconds.
    """
    return min(1.0, since_s / EARNED_AFTER_S)


def device_spec(
    backend: Backend,
    served: Sequence[ReadyVring],
    name: str,
    since_s: float,
    identity: Identity | None,
) -> DeviceSpec:
    """All that the next device is given. Its descriptors stay the back-end's.

    Args:
        backend: knows the guest's memory, the channel and the features.
        served: the vrings that the device is for.
        name: the VM's, for ``ps``.
        since_s: how long ago its last device began to serve it, in seconds.
        identity: whom the device becomes; None: nobody else.
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
        pfns_name_pages=not backend.memory.has_unnameable,
    )

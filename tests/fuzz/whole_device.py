"""One VM as balloond sees it, in one process: connection, back-end and device, without the fork.

What the controller does between them is done here, in the same order: a device that is told to
stop says where its rings stand, and another is made of what the back-end knows then.
"""

import os
from collections.abc import Sequence

from balloon_daemon.device.loop import DeviceLoop
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.device.start import assemble
from balloon_daemon.guests.jailed.device_spec import frees_reported
from balloon_daemon.tube.connection import ControllerEnd, open_tube
from balloon_daemon.tube.messages import Command, Fault, Stopped, Target, Up
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import AnswerVringBase, Effect, StopDevice
from balloon_daemon.vhost_user.messages import CONFIG_CHANGE_MSG
from balloon_daemon.virtio.balloon import BalloonFeature
from tests.harness.invariants import require


def spec_of(backend: Backend) -> DeviceSpec:
    """What a device is made of, as the controller would say it."""
    regions = [
        RegionSpec(
            region.description.guest_addr,
            region.description.frontend_addr,
            region.description.size_bytes,
            region.description.mmap_offset_bytes,
            region.page_bytes,
            None if region.fd is None else region.fd.fileno(),
            freed=not region.never_freed,
        )
        for region in backend.memory.regions
    ]
    vrings = [
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
        for vring in backend.ready_vrings()
    ]
    return DeviceSpec(
        name="device-in-a-test",
        regions=tuple(regions),
        vrings=tuple(vrings),
        channel_fd=None if backend.channel is None else backend.channel.fileno(),
        config_change=CONFIG_CHANGE_MSG,
        must_tell_host=bool(backend.acknowledged & BalloonFeature.MUST_TELL_HOST),
        identity=None,
        frees_reported=frees_reported(backend),
        pfns_name_pages=not backend.memory.has_unnameable,
    )


class WholeDevice:
    """The device of a back-end, made, stopped and killed as effects and tests demand."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loop: DeviceLoop | None = None
        self._tube: ControllerEnd | None = None
        self._own_fds: list[int] = []
        self.faults: list[Fault] = []

    @property
    def running(self) -> bool:
        """Whether there is one."""
        return self._loop is not None

    def perform(self, effects: Sequence[Effect]) -> list[bytes]:
        """Does what the back-end asks for. Returns replies that only the ring can tell."""
        replies = []
        for effect in effects:
            match effect:
                case StopDevice():
                    self.stop()
                case AnswerVringBase(index):
                    replies.append(self._backend.stop_vring(index))
                case _:
                    pass
        return replies

    def settle(self) -> None:
        """The front-end has finished: makes a device if one can run and none does."""
        if self._loop is not None or not self._backend.ready_vrings():
            return
        self._tube, theirs = open_tube()
        self._loop = assemble(self._with_own_fds(spec_of(self._backend)), theirs)

    def _with_own_fds(self, spec: DeviceSpec) -> DeviceSpec:
        """After a fork its descriptors are its own, whatever the back-end closes meanwhile."""

        def own(fd: int | None) -> int | None:
            if fd is not None:
                self._own_fds.append(os.dup(fd))
            return fd if fd is None else self._own_fds[-1]

        vrings = [
            vring._replace(kick_fd=own(vring.kick_fd) or 0, call_fd=own(vring.call_fd))
            for vring in spec.vrings
        ]
        return spec._replace(vrings=tuple(vrings), channel_fd=own(spec.channel_fd))

    def serve(self) -> None:
        """Lets it do all that waits."""
        if self._loop is None or self._tube is None:
            return
        for _ in range(4):
            # A target wakes it, as nothing else may have: a turn waits for something to do.
            self._tube.send(Target(0))
            require(self._loop.turn(), "it ends without being told to")
            self._hear()

    def stop(self) -> None:
        """In order: it says where its rings stand."""
        if self._loop is None or self._tube is None:
            return
        self._tube.send(Command.STOP)
        self._loop.run()
        self._hear()
        self.kill()

    def kill(self) -> None:
        """All at once: nothing is said any more."""
        if self._tube is not None:
            self._tube.close()
        if self._loop is not None:
            self._loop._epoll.close()
            self._loop._tube.close()
        self._loop = self._tube = None
        while self._own_fds:
            os.close(self._own_fds.pop())

    def _hear(self) -> None:
        assert self._tube is not None
        for report in self._tube.receive() or []:
            self._take(report)

    def _take(self, report: Up) -> None:
        match report:
            case Stopped(indices):
                self._backend.rings_stood_at(indices)
            case Fault():
                self.faults.append(report)
            case _:
                pass

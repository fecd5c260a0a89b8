"""VMs that the configuration no longer names and discovery no longer covers: each gets its memory
back, and then its task ends."""

import asyncio
from collections.abc import Mapping

from balloon_daemon.controller.ending import give_back
from balloon_daemon.controller.governor import Governor
from balloon_daemon.events import Publish
from balloon_daemon.units import VmId


class Dismissals:
    """The VMs that are being let go.

    Args:
        governor: is told to decide nothing more for these VMs.
        tasks: the tasks that serve VMs; a VM's task is cancelled once its balloon is empty, or
            does not shrink any more.
        publish: called with each event to be published.
    """

    def __init__(
        self,
        governor: Governor,
        tasks: "Mapping[VmId, asyncio.Task[None]]",
        publish: Publish,
    ) -> None:
        self._governor = governor
        self._tasks = tasks
        self._publish = publish
        self._under_way: dict[VmId, asyncio.Task[None]] = {}

    def __contains__(self, vm: VmId) -> bool:
        """Whether a VM is being let go."""
        return vm in self._under_way

    def begin(self, vm: VmId) -> None:
        """Begins to let a VM go: no target is decided for it any more, and its guest is told to
        empty its balloon."""
        if vm not in self._under_way and vm in self._tasks:
            self._governor.change(vm, None)
            task = asyncio.get_running_loop().create_task(self._let_go(vm))
            self._under_way[vm] = task
            task.add_done_callback(lambda _: self._under_way.pop(vm))

    def close(self) -> None:
        """Stops: balloond ends, and its end (``ending.py``) gives these VMs their memory back."""
        for task in self._under_way.values():
            task.cancel()

    async def _let_go(self, vm_id: VmId) -> None:
        never = asyncio.get_running_loop().create_future()
        vms = [vm for vm in self._governor.vms if vm.guest.vm == vm_id]
        await give_back(vms, never, self._publish, ending=False)
        if (task := self._tasks.get(vm_id)) is not None:
            task.cancel()
            await asyncio.wait([task])

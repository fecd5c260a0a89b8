"""The types of the fixtures that make daemons, guests and rigs, and the sizes that they use."""

from collections.abc import Callable

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon
from tests.harness.device_rig import DeviceRig

VM_MEM_MIB = 512
MARGIN_MIB = 100
SPEED = 20.0

MAXIMUM = VM_MEM_MIB // 2 * MIB
"""The balloon's maximum of a 512 MiB VM."""

STEP = MAXIMUM // 16

SETTINGS = GuestSettings(
    VM_MEM_MIB * MIB, population=Population(touched_bytes=128 * MIB, pinned_bytes=32 * MIB)
)
"""A guest that has touched a part of its memory and never gives up some of that."""

StartDaemon = Callable[..., Daemon]
MakeGuest = Callable[..., FakeGuest]
MakeRig = Callable[..., DeviceRig]

"""Talks of a ``Control`` with a VMM that a test plays."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from balloon_daemon.guests.driven.control import Control, Found
from tests.fakes.listening_vmm import ListeningVmm

V = TypeVar("V", bound=ListeningVmm)
C = TypeVar("C", bound=Control)


def talk_with(
    vmm: V, new_control: Callable[[str], C], talk: Callable[[V, C], Awaitable[None]]
) -> None:
    """Has a VMM listen, and a control talk to it.

    Args:
        vmm: the VMM.
        new_control: makes the control of a VMM at a path.
        talk: what the control does, and what the VMM does meanwhile.
    """

    async def run() -> None:
        async with vmm:
            control = new_control(str(vmm.path))
            try:
                await talk(vmm, control)
            finally:
                control.close()

    asyncio.run(run())


async def opened(control: Control) -> Found:
    """What a control finds; what it notices later is not looked at."""
    return await control.open(lambda notice: None)

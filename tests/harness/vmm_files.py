"""What a process's files in /proc say, opened here: no process of these tests serves VMs."""

from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.linux.process_figures import ProcessFigures, ProcessFiles
from balloon_daemon.linux.process_lookups import opened, owner_of, real_user_of
from tests.harness.waiting import wait_until


def files_in_proc(pid: int) -> ProcessFiles | None:
    """The files of a process that are read again and again; None: it is gone."""
    user = owner_of(pid) or real_user_of(pid)
    return opened(pid, user)


def figures_of(pid: int) -> ProcessFigures:
    """The figures of a process."""
    return ProcessFigures(files_in_proc(pid))


def host_side(pid: int | None, memory_file: str = "") -> HostSide:
    """A VMM's process, as the host's kernel sees it."""
    # As ``vmm_process.opened`` does: 0 and 1 are no VMM's.
    known = pid is not None and pid > 1
    return HostSide(files_in_proc(pid or 0) if known else None, memory_file)


def held_bytes(host: HostSide) -> int:
    """How much of the host's memory a VM holds.

    Asks again where the child that measures files was late, as on a machine with much else to do.
    """

    def measured() -> list[int]:
        found = host.held_bytes()
        return [] if found is None else [found]

    [held] = wait_until(measured, what="the memory file is measured")
    return held

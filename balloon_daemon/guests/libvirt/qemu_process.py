"""Finds the QEMU process of one of libvirt's domains on this host."""

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from balloon_daemon.guests.driven.vmm_process import has_word, open_files, pid_in

_MEMORY_FILES = ("/memfd:memory-backend-memfd",)
"""How QEMU names the memfd of a memory backend."""


async def find_pid(uri: str, name: str, uuid: str) -> int | None:
    """The domain's process id; None where it is not known.

    libvirt writes the process id to a file beside its socket. The file may be out of date: so the
    process's command line must have the domain's UUID. A child reads the file: whoever may list
    its directory, in libvirt's own anybody, can keep a lookup there waiting.

    Args:
        uri: libvirt's name for the connection, such as ``qemu:///system``.
        name: the domain's name.
        uuid: the domain's UUID.

    Raises:
        ControlError: the file or the process cannot be looked at in time.
    """
    directory = _run_directory(uri)
    if directory is None or "/" in name:
        return None
    pid = await pid_in(f"{directory}/{name}.pid")
    return pid if pid is not None and await has_word(pid, uuid) else None


def _run_directory(uri: str) -> Path | None:
    """The directory of the process id files of libvirt's QEMU driver; None: unknown, or on another
    host."""
    parts = urlsplit(uri)
    if parts.scheme not in ("qemu", "qemu+unix") or parts.netloc:
        return None
    if sockets := parse_qs(parts.query).get("socket"):
        return Path(sockets[0]).parent / "qemu"
    if parts.path == "/system":
        return Path("/run/libvirt/qemu")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime, "libvirt/qemu/run") if runtime else None


async def find_memory_file(pid: int) -> str:
    """The path of the descriptor of the memfd that the guest's memory is.

    Args:
        pid: the QEMU process of the guest.

    Returns:
        The path; "": the memory is no memfd, or several, or balloond may not look.

    Raises:
        ControlError: the process cannot be looked at in time.
    """
    files = await open_files(pid, _MEMORY_FILES)
    found = {each.inode: each.path for each in files.found if each.inode}
    return next(iter(found.values())) if len(found) == 1 else ""

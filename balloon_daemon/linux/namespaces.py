"""An empty world for a process that needs none: no files, no network, no System V IPC."""

import contextlib
import ctypes
import os

from balloon_daemon.linux.libc import LIBC

LIBC.unshare.argtypes = [ctypes.c_int]
LIBC.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
]  # fmt: skip

# linux/sched.h
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = (
    0x00020000,
    0x08000000,
    0x10000000,
    0x40000000,
)
# linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 0x4000, 1 << 18


def enter_empty_namespaces() -> bool:
    """Moves this process into namespaces of its own, with an empty read-only root.

    Root gets mount, IPC and network namespaces; anybody else a user namespace around them, and
    with it every capability *in there*, which is the caller's to drop. What is open and mapped
    stays as it is.

    Returns:
        False where the host or the service's own limits do not allow it: nothing has changed
        then but perhaps the namespaces; a policy without ``open`` and ``socket`` stands anyway.
    """
    wanted = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWNET
    if os.geteuid() != 0:
        # Not for root without CAP_SYS_ADMIN: in there it could not give up its ids any more.
        wanted |= _CLONE_NEWUSER
    if LIBC.unshare(wanted) != 0:
        return False
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    # /proc is a directory that every Linux has; here it becomes the root of nothing.
    if (
        LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0
        or LIBC.mount(b"none", b"/proc", b"tmpfs", flags, b"nr_inodes=1") != 0
    ):
        return False
    with contextlib.suppress(OSError):
        os.chroot("/proc")
        os.chdir("/")
        return True
    return False

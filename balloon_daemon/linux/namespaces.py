"""Empty namespaces for a process that needs no files, no network and no System V IPC."""

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

    Root gets mount, IPC and network namespaces; any other user gets a user namespace around them,
    and with it every capability *in that namespace*, which the caller has to drop. Open files and
    mappings stay as they are.

    Returns:
        False where the host or the service's own limits forbid it. Then this process may be in new
        namespaces, but with the old root; the seccomp policy, which allows neither ``open`` nor
        ``socket``, protects in any case.
    """
    wanted = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWNET
    if os.geteuid() != 0:
        # Without root, the other namespaces are allowed only inside a user namespace of this
        # process's own. Root without CAP_SYS_ADMIN does not get a user namespace: inside it, root
        # could not give up its user and group ids.
        wanted |= _CLONE_NEWUSER
    if LIBC.unshare(wanted) != 0:
        return False
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    # Mount an empty tmpfs over /proc, a directory that every Linux has, and make it this process's
    # root.
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

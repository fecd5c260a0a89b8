"""Keeps this process out of all processes but its own children, by Landlock (landlock(7)).

The shipped unit leaves balloond CAP_SETUID and CAP_SETGID, by which devices become another user,
and CAP_KILL, by which balloond can kill them then. Whoever takes the controller over could become
any user, and look at the host through a process of that user's (/proc/PID/root), or kill any
process. A Landlock domain prevents both, whatever capabilities its processes have: the kernel
refuses them ptrace_may_access() of processes outside the domain, and where it can (Linux 6.12)
signals to such processes. A seccomp filter refuses prlimit(2) of other processes, which could kill
them, too (RLIMIT_CPU).
"""

import ctypes
import os

from balloon_daemon.linux import capabilities
from balloon_daemon.linux.libc import LIBC
from balloon_daemon.linux.seccomp import OWN_LIMITS

# asm-generic/unistd.h, linux/landlock.h
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
_MAKE_CHAR, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = 1 << 6, 1 << 10, 1 << 11, 1 << 12
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
_SCOPES_SINCE = 6
"""The first version of Landlock with scopes, by which it can forbid signals to other processes."""

_WIDER = capabilities.DAC_READ_SEARCH | capabilities.SYS_PTRACE | capabilities.SYS_ADMIN


class _RulesetAttr(ctypes.Structure):
    """struct landlock_ruleset_attr; older kernels take it while the later fields are 0."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def stay_out_of_other_processes() -> bool:
    """Enters a Landlock domain for good, with all later children, unless balloond needs what the
    domain forbids. In the domain also loads a filter that refuses to set other processes' limits
    (``OWN_LIMITS``).

    To be called before the first child is forked: a child outside could not be signalled.

    Under the shipped unit balloond may not look into other users' processes anyway: it lacks the
    capabilities for that, and its filter refuses setfsuid(2). The drop-in for VMs that have a
    balloon already allows that call, as balloond then looks at their VMMs (``file_access.py``).
    With CAP_SYS_ADMIN devices mount an empty root for themselves, which Landlock forbids.

    Returns:
        False where balloond is not root or needs what the domain forbids, or where the kernel or a
        filter refuses it.

    Raises:
        OSError: the kernel refuses the filter.
    """
    effective = capabilities.effective()
    if effective is None or effective & _WIDER or os.geteuid() != 0 or LIBC.setfsuid(0) >= 0:
        return False
    version = _call(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if version < 1:
        return False
    # The kernel refuses a ruleset that forbids no kind of access (ENOMSG). So forbid some kinds
    # that balloond does not need: it makes no device node, no FIFO and no symbolic link.
    attr = _RulesetAttr(_MAKE_CHAR | _MAKE_FIFO | _MAKE_BLOCK | _MAKE_SYM)
    if version >= _SCOPES_SINCE:
        attr.scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL
    ruleset = _call(_SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(attr), ctypes.sizeof(attr), 0)
    if ruleset < 0:
        return False
    try:
        if _call(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
            return False
    finally:
        os.close(ruleset)
    OWN_LIMITS.load()
    return True


def _call(number: int, *arguments: object) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    return int(LIBC.syscall(ctypes.c_long(number), *words))

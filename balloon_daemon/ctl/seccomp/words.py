"""Policies, verdicts and calls as English text, for ``balloonctl seccomp``."""

from collections.abc import Iterable, Sequence

from balloon_daemon.seccomp.constants import NO_SYSCALL, Arch
from balloon_daemon.seccomp.policy import (
    MAX_U64,
    Action,
    Atom,
    CallRules,
    Filter,
    Operator,
    ParsedPolicy,
    Place,
    Verdict,
)

# Regular expressions of the constants by which a call's argument may be shown. A common prefix is
# not enough, because constants of other arguments begin with it too (F_LOCK is lockf's,
# PR_TSC_ENABLE a value of prctl's arg1).
_SIGNAL = r"SIG(?!IOT\b|CLD\b|POLL\b|UNUSED\b|STKSZ\b)[A-Z0-9]+"
_FAMILY = r"AF_(?!FILE\b|LOCAL\b|ROUTE\b|MAX\b)\w+"
_NAMES = {
    ("madvise", 2): r"MADV_\w+",
    ("mmap", 2): r"PROT_(?!GROWS)\w+",
    ("mmap", 3): r"MAP_(?!TYPE\b|FILE\b|HUGE_)\w+",
    ("mprotect", 2): r"PROT_\w+",
    ("pkey_mprotect", 2): r"PROT_\w+",
    ("prctl", 0): r"PR_(?:(?:SET|GET)_(?!MM_)|CAPBSET_|MCE_KILL\b)\w*",
    ("clone", 0): r"CLONE_\w+",
    ("unshare", 0): r"CLONE_\w+",
    ("setns", 1): r"CLONE_\w+",
    ("socket", 0): _FAMILY,
    ("socketpair", 0): _FAMILY,
    ("fcntl", 1): r"F_(?:DUPFD|GET|SET|ADD_|OFD_|NOTIFY|CREATED_)\w*",
    ("arch_prctl", 0): r"ARCH_\w+",
    ("kill", 1): _SIGNAL,
    ("tgkill", 2): _SIGNAL,
    ("membarrier", 0): r"MEMBARRIER_CMD_\w+",
    ("epoll_ctl", 1): r"EPOLL_CTL_\w+",
    ("clock_gettime", 0): r"CLOCK_(?!DEFAULT|EXT|INT|TX)\w+",
    ("ptrace", 0): r"PTRACE_(?!O_|EVENT_|SYSCALL_)\w+",
    ("getrandom", 2): r"GRND_\w+",
    ("memfd_create", 1): r"MFD_(?!HUGE_)\w+",
    ("ioctl", 1): r"(?:TC|TIOC|FIO|FS_IOC_|BLK|SIOC|TUN|KVM_|VHOST_|UFFDIO_)\w+",
}

# The arguments, as (call, index), whose values are sums of flags.
_FLAGS = {
    ("mmap", 2), ("mmap", 3), ("mprotect", 2), ("pkey_mprotect", 2), ("clone", 0), ("unshare", 0),
    ("memfd_create", 1), ("getrandom", 2), ("membarrier", 0),
}  # fmt: skip

_MOST_FLAGS = 12

_ANSWERS = {
    Action.ALLOW: "allowed",
    Action.LOG: "allowed, and logged",
    Action.KILL_PROCESS: "killed, with the whole process",
    Action.KILL_THREAD: "killed, the calling thread only",
    Action.TRAP: "stopped with SIGSYS, which the process may handle",
    Action.TRACE: "left to the tracer; without one it fails with ENOSYS",
    Action.USER_NOTIF: "left to the supervisor; without one it fails with ENOSYS",
}

_COMPARED = {
    Operator.EQ: "is {}",
    Operator.NE: "is not {}",
    Operator.LT: "is below {}",
    Operator.LE: "is at most {}",
    Operator.GT: "is above {}",
    Operator.GE: "is at least {}",
    Operator.ANY: "has any bit of {}",
}

NOTABLY_ABSENT = {
    "brk": "malloc's heap cannot grow: glibc falls back to mmap, some programs die",
    "mremap": "realloc of large blocks dies, unless M_MMAP_MAX is 0",
    "rt_sigreturn": "the first signal that a handler handles kills on its return",
    "rt_sigprocmask": "abort() and thread creation block signals first",
    "restart_syscall": "stopping and continuing (SIGSTOP, SIGCONT) in a timed wait kills",
    "exit_group": "the process cannot even end in an orderly way",
    "exit": "threads cannot end",
    "futex": "locks that are contended kill",
    "mmap": "no memory beyond what is there",
    "mprotect": "malloc arenas and thread stacks need it",
    "clone3": "newer libc's threads start with it; it cannot be filtered by flags",
    "openat": "no file can be opened: locales, time zones and error messages included",
    "execve": "no other program can be started",
    "socket": "no socket can be made",
    "recvmsg": "no file descriptor can be received",
    "sendmsg": "no file descriptor can be sent",
    "fcntl": "descriptors cannot be duplicated or made non-blocking",
    "newfstatat": "newer libc's fstat and stat are this call",
    "fstat": "libc's stdio asks it of every file it opens",
    "ioctl": "isatty() is one: stdio asks it of a terminal",
    "clock_nanosleep": "sleeping kills",
    "clock_gettime": "used where the vDSO has no clock, as in some VMs",
    "getrandom": "libc and many libraries seed themselves with it",
    "rseq": "newer libc registers it in every new thread",
    "tgkill": "abort() and raise() are this call",
}

NOTABLY_PRESENT = {
    "execve": "may start other programs, under this same filter",
    "execveat": "may start other programs, under this same filter",
    "ptrace": "may take over other processes",
    "process_vm_writev": "may write into other processes",
    "bpf": "may load programs into the kernel",
    "mount": "may rearrange the file system, if privileged",
    "pivot_root": "may rearrange the file system, if privileged",
    "setns": "may enter other namespaces",
    "unshare": "may make user namespaces, a large part of the kernel to attack",
    "init_module": "may load code into the kernel, if privileged",
    "finit_module": "may load code into the kernel, if privileged",
    "kexec_load": "may replace the kernel, if privileged",
    "keyctl": "a part of the kernel with a long list of holes",
    "userfaultfd": "makes races in the kernel easy to win",
    "perf_event_open": "a part of the kernel with a long list of holes",
    "io_uring_setup": "io_uring does file and socket operations that no filter sees",
    "io_uring_enter": "io_uring does file and socket operations that no filter sees",
    "clone3": "its flags are behind a pointer, so a filter cannot refuse namespaces",
}


def verdict_in_words(verdict: Verdict, arch: Arch) -> str:
    """``fails with EPERM``, ``killed, with the whole process``..."""
    if verdict.action is Action.ERRNO:
        if verdict.errno == 0:
            return "not made, but returns 0"
        name = arch.constant_name(verdict.errno, r"E[A-Z0-9]+") or str(verdict.errno)
        return f"fails with {name}"
    return _ANSWERS[verdict.action]


def value_in_words(call: str, atom: Atom, arch: Arch) -> str:
    """The value as written in the file, with its name or number."""
    shown = atom.text or f"{atom.value:#x}"
    if not shown.lstrip("-")[:1].isdigit():
        return f"{shown} ({atom.value:#x})"
    name = constant_in_words(call, atom.argument, atom.value, arch)
    return f"{name} ({shown})" if name else shown


def constant_in_words(call: str, argument: int, value: int, arch: Arch) -> str | None:
    """The name of an argument's value, or its flags' names, if the call has names for it.

    Flags without a name are added as a number: ``CLONE_CHILD_SETTID|0x11``.
    """
    pattern = _NAMES.get((call, argument))
    # ioctl numbers are 0x1000 or more. Smaller constants with one of the prefixes are no ioctl
    # numbers.
    if pattern is None or (call == "ioctl" and value < 0x1000):
        return None
    exact = arch.constant_name(value, pattern)
    if exact is not None or (call, argument) not in _FLAGS:
        return exact
    bits = [1 << bit for bit in range(64) if value >> bit & 1]
    if len(bits) > _MOST_FLAGS:
        return None  # a mask, for which a number is clearer than a long list of names
    named = {bit: arch.constant_name(bit, pattern) for bit in bits}
    known = [name for name in named.values() if name is not None]
    rest = sum(bit for bit, name in named.items() if name is None)
    if not known:
        return None
    return "|".join([*known, f"{rest:#x}"] if rest else known)


def atom_in_words(call: str, atom: Atom, arch: Arch) -> str:
    """``arg2 is MADV_REMOVE (9)``."""
    if atom.operator is Operator.IN:
        refused = atom.value ^ MAX_U64
        text = f"arg{atom.argument} has no bit outside {value_in_words(call, atom, arch)}"
        low = [1 << bit for bit in range(32) if refused >> bit & 1]
        if 0 < len(low) <= 4:
            names = (constant_in_words(call, atom.argument, b, arch) or f"{b:#x}" for b in low)
            text += f", that is, not {' or '.join(names)}"
        if refused >> 32 == 0xFFFFFFFF:
            text += " and none of the upper 32"
        return text
    compared = _COMPARED[atom.operator].format(value_in_words(call, atom, arch))
    return f"arg{atom.argument} {compared}"


def condition_in_words(call: str, rule: Filter, arch: Arch) -> str:
    """A filter's whole expression."""
    return ", or ".join(
        " and ".join(atom_in_words(call, atom, arch) for atom in clause)
        for clause in rule.clauses or ()
    )


def rules_in_words(rules: CallRules, arch: Arch) -> Iterable[str]:
    """One line for each filter of a call, in the order in which they are tried."""
    for index, rule in enumerate(rules.filters):
        answer = verdict_in_words(rule.verdict, arch)
        if rule.clauses is not None:
            yield f"{answer} if {condition_in_words(rules.name, rule, arch)}"
        elif index == 0:
            yield f"{answer}, whatever its arguments"
        elif rule.place is None:
            yield f"otherwise {answer} (the default)"
        else:
            yield f"otherwise {answer}"


def call_in_words(name: str, arguments: Sequence[int], arch: Arch) -> str:
    """``madvise(0, 0x1000, MADV_REMOVE)``, with names where there are some."""
    shown = []
    for index, value in enumerate(arguments):
        named = constant_in_words(name, index, value, arch)
        shown.append(named or (str(value) if value < 10 else f"{value:#x}"))
    return f"{name}({', '.join(shown)})"


def is_foreign(number: int, policy: ParsedPolicy) -> bool:
    """Whether a call of the policy's own AUDIT_ARCH belongs to another ABI, as x32's do."""
    return bool(policy.abi.foreign_bit) and policy.abi.foreign_bit <= number < NO_SYSCALL


def explain(policy: ParsedPolicy, arch: Arch) -> Iterable[str]:
    """The whole policy in words: each call, then notable calls that are missing or allowed."""
    width = max((len(rules.name) for rules in policy.calls), default=0)
    for rules in sorted(policy.calls, key=lambda rules: rules.name):
        for index, line in enumerate(rules_in_words(rules, arch)):
            yield f"{rules.name if index == 0 else '':{width}}  {line}"
    answer = verdict_in_words(policy.unlisted, arch)
    yield ""
    yield (
        f"Every other call is {answer}."
        if policy.unlisted.action is not Action.ERRNO
        else (f"Every other call {answer}.")
    )
    yield f"Calls that are not {arch.name}'s own are killed, with the whole process."
    named = {rules.name for rules in policy.calls}
    if not policy.denylist:
        yield from _notable("Notably absent:", NOTABLY_ABSENT, arch.calls.keys() - named)
    let_through = {
        rules.name
        for rules in policy.calls
        if any(rule.verdict.action in (Action.ALLOW, Action.LOG) for rule in rules.filters)
    }
    if policy.denylist:
        let_through |= arch.calls.keys() - named
    yield from _notable("Notably allowed:", NOTABLY_PRESENT, let_through)


def _notable(title: str, reasons: dict[str, str], names: Iterable[str]) -> Iterable[str]:
    found = [name for name in reasons if name in set(names)]
    if found:
        width = max(map(len, found))
        yield ""
        yield title
        yield from (f"  {name:{width}}  {reasons[name]}" for name in found)


def place_in_words(place: Place) -> str:
    """``file:line:column``, the line, and a caret below its place."""
    return str(place.problem("this decides"))

"""Compiles rules through libseccomp; started by ``seccomp.libseccomp``.

Reads one JSON object from standard input, as ``seccomp.libseccomp`` writes it, and writes
libseccomp's version, a line end and the program to standard output. On failure it writes one line
to standard error and exits with status 1.
"""

import json
import os
import sys
from typing import Any

MASKED_EQ = 7
"""SCMP_CMP_MASKED_EQ of libseccomp's seccomp.h: takes two data, first the mask, then the value."""


def main() -> int:
    """Compiles the rules on standard input. Returns the exit status."""
    try:
        try:
            import pyseccomp
        except ModuleNotFoundError:
            # libseccomp's own module, which Debian has: the same names, with the same meaning.
            import seccomp as pyseccomp
    except ImportError:
        return _refuse("neither pyseccomp nor libseccomp's own module (python3-seccomp) is there")
    except (RuntimeError, OSError) as err:
        return _refuse(f"pyseccomp cannot be used here: {err}")
    from balloon_daemon.linux.libseccomp import version

    wanted: dict[str, Any] = json.load(sys.stdin)
    name = "libseccomp"
    try:
        number = version()
        name = f"libseccomp {number}"
        filter_ = pyseccomp.SyscallFilter(_signed(wanted["default"]))
        filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        native = pyseccomp.system_arch() & 0xFFFFFFFF
        if wanted["audit_arch"] != native:
            filter_.add_arch(wanted["audit_arch"])
            filter_.remove_arch(native)
    except OSError as err:
        return _refuse(f"{name} cannot make such a filter: {err.strerror}")
    for call, call_number, action, comparisons in wanted["rules"]:
        known = call_number
        if wanted["audit_arch"] != native:
            # seccomp_rule_add takes the call's number on this machine, and translates it for the
            # filter's architecture. For a call that this machine lacks it takes libseccomp's
            # negative pseudo number.
            known = pyseccomp.resolve_syscall(native, call)
            if known == -1:
                return _refuse(f"{name} does not know {call}")
        arguments = [
            pyseccomp.Arg(index, comparator, mask, value)
            if comparator == MASKED_EQ
            else pyseccomp.Arg(index, comparator, value)
            for index, comparator, value, mask in comparisons
        ]
        try:
            filter_.add_rule_exactly(_signed(action), known, *arguments)
        except OSError as err:
            return _refuse(f"{name} refuses a rule for {call}: {err.strerror}")
    sys.stdout.buffer.write(f"{number}\n".encode() + _exported(filter_))
    return 0


def _exported(filter_: Any) -> bytes:
    with os.fdopen(os.memfd_create("bpf", os.MFD_CLOEXEC), "r+b") as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def _signed(action: int) -> int:
    """An action as a C int, which libseccomp's own module takes; pyseccomp takes both."""
    return action - (1 << 32) if action >= 1 << 31 else action


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

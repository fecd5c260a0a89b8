"""Writes a policy for the calls that a command made."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from balloon_daemon.ctl.seccomp.words import constant_in_words
from balloon_daemon.seccomp.constants import Arch

# System calls that do many things under one number, each with the index of the argument that
# selects one of them.
_TELLING = {
    "ioctl": 1, "mmap": 2, "mprotect": 2, "pkey_mprotect": 2, "madvise": 2, "prctl": 0,
    "arch_prctl": 0, "socket": 0, "socketpair": 0, "fcntl": 1, "clone": 0, "unshare": 0,
    "setns": 1, "personality": 0, "membarrier": 0, "tgkill": 2, "bpf": 0, "ptrace": 0,
    "memfd_create": 1, "seccomp": 0, "keyctl": 0,
}  # fmt: skip


@dataclass(slots=True)
class UsedCalls:
    """The calls seen: how often each, and the values of the argument that selects its
    operation."""

    arch: Arch
    counts: Counter[str] = field(default_factory=Counter)
    values: dict[str, set[int]] = field(default_factory=dict)
    unnamed: set[int] = field(default_factory=set)

    def add(self, number: int, arguments: tuple[int, ...]) -> None:
        """Counts one call."""
        name = self.arch.call_name(number)
        if name is None:
            self.unnamed.add(number)
            return
        self.counts[name] += 1
        index = _TELLING.get(name)
        if index is not None:
            self.values.setdefault(name, set()).add(arguments[index])

    def policy(self) -> Iterable[str]:
        """The lines of a policy file that allows just these calls, without line ends."""
        for name in sorted(self.counts):
            index = _TELLING.get(name)
            if index is None:
                yield f"{name}: 1"
                continue
            comparisons = [
                f"arg{index} == {self._written(name, index, value)}"
                for value in sorted(self.values[name])
            ]
            yield f"{name}: " + " || ".join(comparisons)
        for number in sorted(self.unnamed):
            yield f"# call {number} has no name for {self.arch.name}. {self.arch.origin}"

    def _written(self, name: str, index: int, value: int) -> str:
        return constant_in_words(name, index, value, self.arch) or f"{value:#x}"

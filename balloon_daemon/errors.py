"""All errors of balloond, by whose fault each is. Pure; imports no module of balloond.

::

    BalloondError
    ├── ConfigError      operator: a bad setting              -> one line, exit status 2
    │   └── KeeperError  a keeper does not answer             -> one line, VMs are not kept
    ├── ConfigFileError  operator: a bad configuration file   -> its lines, exit status 2
    ├── PolicyFileError  operator: a bad seccomp policy file  -> its lines, exit status 2
    ├── TrialError       host: no device process can run here -> one line, exit status 1
    ├── JudgeError       ours: two compilers disagree         -> one line, exit status 1 (--check)
    ├── SourceError      host: low memory cannot be seen      -> one line, exit status 1 (--check)
    ├── GuestError       the guest broke the virtio rules     -> drop that chain, count, go on
    │   └── RingError    its ring cannot be trusted any more  -> stop that queue, report
    ├── FrontendError    the VMM broke vhost-user             -> close that connection
    ├── MemoryFileError  guest memory cannot be mapped        -> that device ends, one line
    ├── StateFileError   a state kept by another balloond     -> close that VMM's connection
    │   └── DeviceHangsError  a device hangs in the kernel    -> the same
    ├── TubeError        our two processes disagree           -> that device is killed
    └── StateError       a call made in the wrong state       -> our bug

None of them ends the controller. Failures of the kernel stay ``OSError``, with their errno.
"""

from collections.abc import Sequence
from enum import IntEnum

from balloon_daemon.named_tuple import NamedTuple


class BalloondError(Exception):
    """The root of all errors that balloond raises on purpose."""


class ConfigError(BalloondError):
    """The operator's mistake: names the setting, what was found and what is allowed."""


class ConfigFileError(BalloondError):
    """All mistakes in a configuration file, a line each, which begins with the file's name."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Args: the mistakes, in the order of the text; at least one."""
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class KeeperError(ConfigError):
    """The keeper (the process that holds the VMs' descriptors between one balloond and the next)
    does not answer, so this balloond cannot serve those VMs."""


class TrialError(BalloondError):
    """A trial device did not complete its work: says how it failed, and the remedy."""


class JudgeError(BalloondError):
    """balloond's own compiler and libseccomp compile one seccomp policy to BPF programs that give
    different verdicts on a system call; says on which."""


class SourceError(BalloondError):
    """The host has no figures that show low memory: says what was found, and the remedy."""


_SOURCE_SHOWN = 240
"""How many characters of a policy file's line a message shows at most."""

_MESSAGE_SHOWN = 600


def printable(text: str) -> str:
    """The text on one line, safe for a terminal.

    Unprintable characters, among them control characters, other line ends and marks of direction,
    are escaped: ``\\x1b``, ``\\u2028``. So is a byte that was no UTF-8: ``\\xff``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape decodes an invalid byte so
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _line_shown(source: str) -> str:
    return "\t".join(map(printable, source.split("\t")))


class PolicyProblem(NamedTuple):
    """One error or warning about a seccomp policy file, with its place.

    Attributes:
        file: the file's path, as it was opened.
        line: counted from 1.
        column: counted from 1, in characters.
        length: how many characters the caret line marks; at least 1.
        source: the whole line, without its end.
        message: what was found and what is allowed.
    """

    file: str
    line: int
    column: int
    length: int
    source: str
    message: str

    def __str__(self) -> str:
        """``file:line:column: message``, then the source line, then carets under the place."""
        return self.with_mark("")

    def with_mark(self, mark: str) -> str:
        """The same text with a mark before the message, such as ``warning: ``.

        Unprintable characters of the file are escaped. Of a long line only the part around the
        place is shown.
        """
        message = printable(self.message)
        if len(message) > _MESSAGE_SHOWN:
            message = f"{message[: _MESSAGE_SHOWN - 100]} … {message[-100:]}"
        head = f"{printable(self.file)}:{self.line}:{self.column}: {mark}{message}"
        if not self.source.strip():
            return head
        at = self.column - 1
        start, end = 0, len(self.source)
        if end > _SOURCE_SHOWN:
            start = max(0, min(at - _SOURCE_SHOWN // 2, end - _SOURCE_SHOWN))
            end = start + _SOURCE_SHOWN
        left, right = "… " if start else "", " …" if end < len(self.source) else ""
        before = left + _line_shown(self.source[start:at])
        marked = _line_shown(self.source[at : min(at + self.length, end)])
        after = _line_shown(self.source[at + self.length : end]) + right
        # Keep the tabs of the source line in the line of carets: otherwise a terminal would show
        # the carets at another place.
        below = "".join("\t" if c == "\t" else " " for c in before)
        carets = "^" * max(1, len(marked))
        return f"{head}\n    {before}{marked}{after}\n    {below}{carets}"


class PolicyFileError(BalloondError):
    """All errors in a seccomp policy file, each with its place."""

    def __init__(self, problems: Sequence[PolicyProblem]) -> None:
        """Args: the problems, in the order of the text; at least one."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class Rule(IntEnum):
    """The virtio rules that a guest can break, each with a number.

    A device sends the controller only the number and the value that broke the rule. The controller
    makes the text, so that a device that its guest has taken over cannot write into the log.
    """

    INDIRECT = 1
    ORDER = 2
    NEXT = 3
    LOOP = 4
    DIRECTION = 5
    LENGTH = 6
    LIMIT = 7
    ADDRESS = 8
    PFN = 9
    AVAIL_IDX = 10
    HEAD = 11
    RING = 12
    KICK = 13
    PARTS = 14


_RULES = {
    Rule.INDIRECT: "is indirect, which was not offered",
    Rule.ORDER: "has a readable part after a writable one",
    Rule.NEXT: "goes on at descriptor {found}, its queue ends before",
    Rule.LOOP: "is longer than its queue's {found} descriptors: it loops",
    Rule.DIRECTION: "has {found} parts of the wrong direction",
    Rule.LENGTH: "has {found} bytes, which is no whole number of entries",
    Rule.LIMIT: "has {found} bytes, over the limit",
    Rule.PARTS: "has {found} parts, over the limit",
    Rule.ADDRESS: "names address {found:#x}, outside guest memory",
    Rule.PFN: "names PFN {found:#x}, outside guest memory",
    Rule.AVAIL_IDX: "avail.idx jumped {found} ahead, more than its entries allow",
    Rule.HEAD: "head {found} is beyond its descriptors",
    Rule.RING: "its memory at {found:#x} cannot hold a ring",
    Rule.KICK: "its kick is no eventfd, or hung up",
}

NO_HEAD = 0xFFFF
"""Stands for a head where the ring itself is at fault, not one chain."""


class GuestError(BalloondError):
    """The guest broke the virtio rules in one descriptor chain.

    Args:
        queue: the queue's name in the specification.
        head: the chain's head descriptor index.
        rule: the rule.
        found: the value that broke it.
    """

    def __init__(self, queue: str, head: int, rule: Rule, found: int = 0) -> None:
        chain = "" if head == NO_HEAD else f"chain {head} "
        super().__init__(f"{queue}: {chain}{_RULES[rule].format(found=found)}")
        self.queue = queue
        self.head = head
        self.rule = rule
        self.found = found


class RingError(GuestError):
    """The ring itself cannot be trusted any more; its queue must stop."""

    def __init__(self, queue: str, rule: Rule, found: int = 0) -> None:
        super().__init__(queue, NO_HEAD, rule, found)


class FrontendError(BalloondError):
    """The VMM broke vhost-user; carries the request's name."""

    def __init__(self, request: str, message: str) -> None:
        super().__init__(f"{request}: {message}")
        self.request = request


class MemoryFileError(BalloondError):
    """Guest memory cannot be mapped any more, although its VMM's memory table was in order."""


class StateFileError(BalloondError):
    """The state of a VM's connection, stored by another balloond, is unusable, so this controller
    cannot serve the VM."""


class DeviceHangsError(StateFileError):
    """A killed device process does not end, so nobody knows how far it has served its guest's
    virtqueues.

    Its VMM's connection is closed, as for unusable state that another balloond stored.
    """


class TubeError(BalloondError):
    """A message between controller and device that neither of them would send."""


class StateError(BalloondError):
    """A call made in the wrong state: a bug of ours."""

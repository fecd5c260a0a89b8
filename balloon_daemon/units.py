"""Sizes, VMs' identities, and the integer types that must not be swapped.

Pure; imports only errors.
"""

from typing import NewType

from balloon_daemon.errors import ConfigError
from balloon_daemon.named_tuple import NamedTuple

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

PAGE_SIZE = 4096
"""One balloon page, whatever the host's or the guest's page size (virtio 1.3, 5.5.6)."""

NumPages = NewType("NumPages", int)
"""A count of 4 KiB balloon pages."""

GuestAddr = NewType("GuestAddr", int)
"""A guest-physical address, as it stands in a descriptor or in a PFN × 4096."""

FrontendAddr = NewType("FrontendAddr", int)
"""An address in the front-end's own address space, as SET_VRING_ADDR carries it."""


class VmId(NamedTuple):
    """A VM of this daemon; two ids with the same number are the same VM.

    Attributes:
        number: counted up from 1 and never reused, not even by a daemon that takes over.
        name: for people: a log line's field, a process's name in ``ps``; never parsed.
    """

    number: int
    name: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VmId) and self.number == other.number

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return self.number  # As hash(number), without the call: this runs very often.

    def __str__(self) -> str:
        return self.name


# At most 15 digits before the point, which in bytes is almost a PiB: a longer number is a mistake,
# not a size of memory.
_NO_UNIT = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_SIZE = rf"(?i:({_NO_UNIT})\s*(?:([kmgt])(?:i?b)?|b)?)"
_FACTOR = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}


def parse_size(text: str) -> int:
    """Parses a size as people write it: ``4G``, ``1.5GiB``, ``512 MB``, ``1048576``.

    Suffixes are binary, with or without ``iB`` or ``B``, in either case.

    Returns:
        The size in bytes, rounded down to whole bytes; at least 1.

    Raises:
        ConfigError: the text is not a size, or less than one byte.
    """
    # Imported here and below: the template, which parses no size, does without it.
    import re

    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write it like 4G, 512M or 1.5GiB")
    number, suffix = match.groups(default="")
    factor = _FACTOR[suffix.lower()]
    size = int(float(number) * factor) if "." in number else int(number) * factor
    if size < 1:
        raise ConfigError(f"{text!r} is not a size of at least one byte")
    return size


MOST_MEMORY_BYTES = 1 << 52
"""The most that x86-64 can address (Intel SDM 3A, 4.1.4: 52 bits of physical address)."""


def parse_memory_size(text: str) -> int:
    """Parses an amount of memory of a VM or a host, as ``parse_size`` does.

    A number without a unit is taken as bytes only where it is a whole number of MiB: other
    numbers, such as ``1.5`` or ``1000``, were probably meant to have a unit.

    Returns:
        The size in bytes, from 1 MiB to ``MOST_MEMORY_BYTES``.

    Raises:
        ConfigError: the text is not a size, has no unit, or is outside these bounds.
    """
    import re

    number = text.strip()
    if re.fullmatch(_NO_UNIT, number) and ("." in number or int(number) % MIB):
        raise ConfigError(f"{text!r} has no unit; write {number}G or {number}M")
    size = parse_size(text)
    if size < MIB:
        raise ConfigError(f"{text!r} is less than 1 MiB, the least that can be given")
    if size > MOST_MEMORY_BYTES:
        raise ConfigError(f"{text!r} is more than 4 PiB, the most that x86-64 can address")
    return size


def format_size(size_bytes: int) -> str:
    """Writes a size for people: ``3 GiB``, ``192 MiB``, ``1.5 GiB``, ``0 B``."""
    for factor, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{size_bytes} B"

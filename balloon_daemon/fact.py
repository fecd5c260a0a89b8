"""Makes named tuples (events, reports, effects, messages to devices) compare by their class too.

Pure. A named tuple takes 0.02 ms of each start and some 3 KiB, a frozen dataclass twenty times the
time and four times the memory, and there are dozens of these classes. But plain named tuples of
two classes are equal if their fields are equal, and a tuple without fields is false.
"""

from typing import TypeVar

Class = TypeVar("Class", bound=type)


def fact(cls: Class) -> Class:
    """Makes values of this class, a ``NamedTuple``, equal only to values of the same class."""
    for name, method in _METHODS.items():
        setattr(cls, name, method)
    return cls


def _is_same(self: tuple[object, ...], other: object) -> bool:
    return type(self) is type(other) and tuple(self) == tuple(other)


def _hash_of(self: tuple[object, ...]) -> int:
    return hash((type(self), tuple(self)))


_METHODS = {
    "__eq__": _is_same,
    "__ne__": lambda self, other: not _is_same(self, other),
    "__hash__": _hash_of,
    "__bool__": lambda self: True,
}

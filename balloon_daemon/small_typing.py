"""A stand-in for ``typing``, for balloond's own processes; to be imported before ``typing`` is.

typing is the largest module of the standard library that a start would load, and loads ``re``.
Annotations alone need it: nothing in balloond reads them, nor asks whether a value is of a
Protocol.
"""

import sys

from balloon_daemon.stand_in import StandIn


def _assert_never(value: object) -> None:
    """Raises the error of ``typing.assert_never``."""
    raise AssertionError(f"Expected code to be unreachable, but got: {value!r}")


class _Bare:
    """Stands for a class of typing's, which annotations and bases name with or without
    arguments."""

    def __class_getitem__(cls, item: object) -> type["_Bare"]:
        return cls


class _ClassVar(_Bare):
    """Equals the type of no field; dataclasses compares each field's with it."""


class _GenericAlias(_Bare):
    """The class of no field's type; dataclasses asks for it, too."""


class _TypeVar:
    """Stands for a type variable. A subscripted alias of a generic one (``Row[Of]``) is made as
    the module is imported, for which Python asks the variable for its replacement."""

    def __init__(self, name: str, *constraints: object, **options: object) -> None:
        pass

    def __typing_subst__(self, argument: object) -> object:
        return argument

    def __or__(self, other: object) -> object:
        return object

    __ror__ = __or__


OF_TYPING: dict[str, object] = {
    "TYPE_CHECKING": False,
    "assert_never": _assert_never,
    "final": lambda thing: thing,
    "ClassVar": _ClassVar,
    "_GenericAlias": _GenericAlias,
    "NewType": lambda name, base: base,
    "TypeVar": _TypeVar,
    **dict.fromkeys(("Any", "NoReturn", "Self", "TextIO"), object),
    **dict.fromkeys(("Generic", "Optional", "Protocol", "Type"), _Bare),
}
"""All that balloond and asyncio import from ``typing``."""

if sys.version_info < (3, 14):  # From then on named_tuple.py needs the real one.
    sys.modules.setdefault("typing", StandIn("typing", OF_TYPING))

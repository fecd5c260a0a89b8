"""Puts the code that devices run onto few pages of the template's memory.

CPython writes to the reference count of a code object whenever a function begins or ends, and a
device copies the page. Modules leave their code objects wherever they were loaded, each among much
that a device never touches. Here the functions that a device runs get copies of their code, which
are made one after the other and so lie side by side.
"""

import gc
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, FunctionType


def code_run_by(run: Callable[[], object]) -> list[CodeType]:
    """Calls ``run``; returns the code that ran, in the order in which each ran first."""
    found: dict[CodeType, None] = {}

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            found.setdefault(frame.f_code)

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(previous)
    return list(found)


def gather(codes: Iterable[CodeType], modules: Iterable[str]) -> None:
    """Gives functions new code objects, side by side: first those that run this code, then all
    others of the modules named."""
    order = {code: place for place, code in enumerate(codes)}
    names = set(modules)
    functions = [
        thing
        for thing in gc.get_objects()
        if type(thing) is FunctionType and (thing.__code__ in order or thing.__module__ in names)
    ]
    functions.sort(key=lambda function: order.get(function.__code__, len(order)))
    # Keep the old code objects until all new ones are made: none of these then gets the place of
    # an old one, amid the rest.
    old = [function.__code__ for function in functions]
    for function, code in zip(functions, old, strict=True):
        function.__code__ = _copy_of(code)


def _copy_of(code: CodeType) -> CodeType:
    """A copy, with copies of the code of functions and comprehensions inside."""
    return code.replace(
        co_consts=tuple(
            _copy_of(const) if isinstance(const, CodeType) else const for const in code.co_consts
        )
    )

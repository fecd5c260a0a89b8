"""Imports asyncio without modules that it imports and balloond seldom or never uses; must be
imported before any other module imports asyncio, dataclasses or pathlib.

asyncio imports ssl for TLS transports. balloond uses Unix sockets only, and asyncio also works in
a Python that was built without ssl. Without ssl the daemon starts a twentieth faster, and the
controller takes 5 MiB less, because nothing else loads libcrypto at the start.

The modules of ``LATER`` are imported for functions that format an error, run in a debug mode,
parse an IPv6 address or speak TLS. They and what they import themselves (ast, dis) take 7 ms of a
start and 1.2 MiB. The first use of such a module loads it.
"""

import importlib
import sys
from types import CodeType, ModuleType

LATER = ("inspect", "ipaddress", "textwrap", "tokenize", "asyncio.sslproto")
"""Imported by asyncio and dataclasses, by urllib.parse for pathlib, by traceback, by linecache, by
asyncio. Python 3.14 loads inspect all the same, for the docstrings of asyncio.graph's classes."""

_CO_COROUTINE = 0x80
"""A code object's flag (inspect.CO_COROUTINE)."""


class _Later(ModuleType):
    """Stands for a module in ``sys.modules`` until something in it is used, and forwards to it."""

    def __getattr__(self, name: str) -> object:
        # The import system asks each module for names such as __path__, which is no use of it.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load(self.__name__), name)


def _load(name: str) -> ModuleType:
    """A module itself, whatever stands for it in ``sys.modules``."""
    if isinstance(sys.modules.get(name), _Later):
        del sys.modules[name]
    return importlib.import_module(name)


def _iscoroutinefunction(function: object) -> bool:
    """Whether calling this function makes a coroutine; asyncio asks that of signals' handlers."""
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & _CO_COROUTINE)


def _get_annotations(thing: object, **how: object) -> object:
    """A class's own annotations; dataclasses asks that in Python 3.13, for each class."""
    if isinstance(thing, type) and not how:
        return dict(vars(thing).get("__annotations__") or {})
    return _load("inspect").get_annotations(thing, **how)


def _import_lean() -> None:
    for name in LATER:
        sys.modules.setdefault(name, _Later(name))
    if isinstance(inspect := sys.modules["inspect"], _Later):
        vars(inspect)["iscoroutinefunction"] = _iscoroutinefunction
        # Since 3.14 a class makes its annotations when it is asked, and annotationlib asks.
        if sys.version_info < (3, 14):
            vars(inspect)["get_annotations"] = _get_annotations
    if "ssl" in sys.modules or "asyncio" in sys.modules:
        return  # Too late: asyncio or ssl has been loaded already.
    # None in sys.modules makes "import ssl" fail as if the module were missing (Python's
    # reference, "The module cache"): asyncio then loads without ssl.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401  # sys.modules keeps it
    finally:
        del sys.modules["ssl"]


_import_lean()

import asyncio as asyncio  # noqa: E402

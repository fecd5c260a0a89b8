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
"""The modules that import them, in the same order: asyncio and dataclasses; urllib.parse, which
pathlib imports; traceback; linecache; asyncio."""

_CO_COROUTINE = 0x80
"""A code object's flag (inspect.CO_COROUTINE)."""


class _Later(ModuleType):
    """Stands for a module in ``sys.modules`` until something in it is used, and forwards to it."""

    def __getattr__(self, name: str) -> object:
        # The import system asks each module for names such as __path__, which does not use the
        # module.
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _iscoroutinefunction(function: object) -> bool:
    """Whether calling this function makes a coroutine; asyncio asks that of signals' handlers."""
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & _CO_COROUTINE)


def _import_lean() -> None:
    for name in LATER:
        sys.modules.setdefault(name, _Later(name))
    if isinstance(inspect := sys.modules["inspect"], _Later):
        vars(inspect)["iscoroutinefunction"] = _iscoroutinefunction
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

"""Imports asyncio without modules that it imports and balloond seldom or never uses; must be
imported before any other module imports argparse, asyncio, dataclasses or pathlib.

asyncio imports ssl for TLS transports. balloond uses Unix sockets only, and asyncio also works in
a Python that was built without ssl. Without ssl the daemon starts a twentieth faster, and the
controller takes 5 MiB less, because nothing else loads libcrypto at the start.

Of asyncio itself only the modules in ``_PARTS`` are loaded: the package is put together from them
without its ``__init__``, which would import all.

The modules of ``LATER`` are imported for functions that format an error, run in a debug mode,
start programs or threads, parse URLs, translate, log or speak TLS. They and what they import
themselves (ast, dis, locale, string) take 16 ms of a start and 2.2 MiB. The first use of such a
module loads it.
"""

import _heapq
import importlib
import sys
from _random import Random
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import CodeType, FunctionType

from balloon_daemon.stand_in import StandIn, load

_CO_COROUTINE = 0x80
"""A code object's flag (inspect.CO_COROUTINE)."""


def _called_later(module: str, name: str) -> Callable[..., object]:
    """A function of a module that is loaded when the function is called."""
    return lambda *args, **options: getattr(load(module), name)(*args, **options)


def _iscoroutinefunction(function: object) -> bool:
    """Whether calling this function makes a coroutine; asyncio asks that of signals' handlers."""
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & _CO_COROUTINE)


def _unwrapped(function: object) -> object:
    """The function that a decorator has wrapped (functools.wraps).

    asyncio calls this, and ``_isfunction``, when a callback has raised an error, to say where the
    callback is defined. Loading inspect then would read files while VMs are served. It would also
    fail where no descriptor is free, and that error would end the event loop.
    """
    while isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _isfunction(thing: object) -> bool:
    return isinstance(thing, FunctionType)


def _untranslated(message: str) -> str:
    """The message: the standard library has no translation of argparse's."""
    return message


def _plural(one: str, several: str, count: int) -> str:
    return one if count == 1 else several


class _Logger:
    """asyncio's logger, which nobody has given a handler or a level: logging itself would also
    drop debug and info, and print the message of all else to standard error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, message: str, *args: object, **options: object) -> None:
        """Drops the message."""

    info = debug

    def warning(self, message: str, *args: object, **options: object) -> None:
        """Prints the message. No traceback, whatever ``exc_info`` says: that would look up files
        while VMs are served."""
        print(message % args if args else message, file=sys.stderr)

    error = warning


def _get_annotations(thing: object, **how: object) -> object:
    """A class's own annotations; dataclasses asks that in Python 3.13, for each class."""
    if isinstance(thing, type) and not how:
        return dict(vars(thing).get("__annotations__") or {})
    return load("inspect").get_annotations(thing, **how)


# Since Python 3.14 a class makes its annotations only when asked for them, so ``vars`` may lack
# them; the standard library then asks by annotationlib, not by inspect.
_OF_CLASSES: dict[str, object] = (
    {} if sys.version_info >= (3, 14) else {"get_annotations": _get_annotations}
)

_BEFORE_3_14: dict[str, dict[str, object]] = (
    {}
    if sys.version_info >= (3, 14)
    else {
        "asyncio.staggered": {},
        "heapq": {name: vars(_heapq)[name] for name in ("heapify", "heappop", "heappush")},
    }
)

LATER: dict[str, dict[str, object]] = {
    **_BEFORE_3_14,
    "asyncio.sslproto": {},
    "concurrent.futures": {
        name: name for name in ("FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED")
    },
    "gettext": {"gettext": _untranslated, "ngettext": _plural},
    "inspect": {
        "iscoroutinefunction": _iscoroutinefunction,
        "unwrap": _unwrapped,
        "isfunction": _isfunction,
        **_OF_CLASSES,
    },
    "ipaddress": {},
    "logging": {"DEBUG": 10, "getLogger": _Logger},
    "random": {"random": Random().random},
    "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3},
    "textwrap": {},
    "tokenize": {},
    "traceback": {"extract_stack": _called_later("traceback", "extract_stack")},
    "urllib.parse": {"quote_from_bytes": _called_later("urllib.parse", "quote_from_bytes")},
}
"""Each module with those of its names that argparse, asyncio, pathlib and balloond use as they are
imported, at each start, or when a callback has raised an error; any other name loads the module.
Python 3.14 loads inspect all the same, for the docstrings of asyncio.graph's classes."""


def _import_lean() -> None:
    for name, given in LATER.items():
        if name in sys.modules:
            continue
        stand_in = sys.modules[name] = StandIn(name, given)
        package, _, child = name.rpartition(".")
        if package and package != "asyncio":
            # "import urllib.parse" finds the stand-in in sys.modules, but binds only "urllib": so
            # make the stand-in an attribute of that package, too.
            setattr(importlib.import_module(package), child, stand_in)
    if "ssl" in sys.modules or "asyncio" in sys.modules:
        return  # Too late: asyncio or ssl has been loaded already.
    # None in sys.modules makes "import ssl" fail as if the module were missing (Python's
    # reference, "The module cache"): asyncio then loads without ssl.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        if sys.version_info >= (3, 14):
            import asyncio  # noqa: F401  # sys.modules keeps it
        else:
            _import_parts()
    finally:
        del sys.modules["ssl"]


_PARTS = (
    *("base_events", "coroutines", "events", "exceptions", "futures", "locks", "protocols"),
    *("runners", "tasks", "timeouts", "transports", "unix_events"),
)
_OTHER_PARTS = ("queues", "streams", "subprocess", "taskgroups", "threads")
"""All modules of which asyncio's own ``__init__`` makes the package, in two halves: those that
balloond uses, and the others, which are loaded when a name in one of them is used."""


def _import_parts() -> None:
    """Imports asyncio without running its ``__init__``, which would import all of its modules."""
    spec = find_spec("asyncio")
    assert spec is not None
    package = sys.modules["asyncio"] = module_from_spec(spec)
    for part in _PARTS:
        module = importlib.import_module(f"asyncio.{part}")
        vars(package).update((name, getattr(module, name)) for name in module.__all__)
    vars(package)["__getattr__"] = _of_other_part


def _of_other_part(name: str) -> object:
    """What is in one of asyncio's modules that are not loaded yet."""
    if not name.startswith("_"):
        for part in _OTHER_PARTS:
            module = importlib.import_module(f"asyncio.{part}")
            if name == part:
                return module
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'asyncio' has no attribute {name!r}", name=name)


_import_lean()

import asyncio as asyncio  # noqa: E402

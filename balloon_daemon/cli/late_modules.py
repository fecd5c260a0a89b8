"""Modules that a running balloond comes to need: a child reads their code, the controller runs it.

To import a module, Python looks names up in directories and reads files. A lookup can wait for the
directory's lock (inode->i_rwsem), which another user holds by listing the directory, and VMs would
wait with it. So the child that reads a configuration anew imports the drivers that the
configuration needs, and sends the code of each module. The controller runs that code a module at a
time, and serves VMs in between.
"""

import binascii
import importlib
import marshal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType
from typing import Any

from balloon_daemon.cli.asyncio_lean import asyncio

SHARE = 1 / 8
"""The share of the event loop's time that running modules may use, the same as the API's clients
may: all modules of a driver have run after half a second. The largest one takes 2 ms at once."""


def carried_modules(load: Callable[[], object]) -> Iterator[list[object]]:
    """Imports modules, and yields the code of each; a module comes after those that it imports.

    Args:
        load: imports the modules.

    Raises:
        ValueError: a module cannot be imported; says which one, and the remedy.
    """
    before = dict(sys.modules)
    try:
        load()
    except ImportError as err:
        raise ValueError(f"{err}; install balloond anew") from err
    # In the order in which they were loaded: importlib puts a module at the end of ``sys.modules``
    # once it has run. A module in the place of its stand-in (``asyncio_lean``) is a new one, too.
    for name in [name for name, module in sys.modules.items() if module is not before.get(name)]:
        spec = sys.modules[name].__spec__
        match None if spec is None else spec.loader:
            case SourceFileLoader() as loader:
                dumped = marshal.dumps(loader.get_code(name))
                code = binascii.b2a_base64(dumped, newline=False).decode()
                yield ["module", name, loader.path, loader.is_package(name), code]
            case ExtensionFileLoader() as loader:
                yield ["extension", name, loader.path]


async def run_modules(carried: Sequence[object]) -> None:
    """Imports modules from what ``carried_modules`` yielded in the child; modules that are loaded
    already stay as they are.

    Raises:
        OSError: ``carried`` is not of that form, or a module's code raised an error.
    """
    modules = _Modules()
    try:
        for part in carried:
            modules.take(part)
        sys.meta_path.insert(0, modules)
        for name in modules.loaders:
            if name not in sys.modules:
                began_s = time.monotonic()
                importlib.import_module(name)
                await asyncio.sleep((time.monotonic() - began_s) * (1 / SHARE - 1))
    except (ImportError, ValueError) as err:
        raise OSError(0, f"the modules for these VMs cannot be loaded: {err}") from err
    finally:
        if modules in sys.meta_path:
            sys.meta_path.remove(modules)


class _Carried(SourceFileLoader):
    """The loader of a module whose code came from the child: it opens no file."""

    def __init__(self, name: str, path: str, code: bytes, *, is_package: bool) -> None:
        super().__init__(name, path)
        self._code, self._is_package = code, is_package

    def is_package(self, fullname: str) -> bool:
        return self._is_package

    def get_code(self, fullname: str) -> CodeType:
        code = marshal.loads(self._code)
        assert isinstance(code, CodeType)
        return code


class _Modules:
    """Finds modules whose code came from the child: a finder of ``sys.meta_path``."""

    def __init__(self) -> None:
        self.loaders: dict[str, _Carried | ExtensionFileLoader] = {}

    def take(self, part: object) -> None:
        """Takes a part of ``carried_modules``; raises ValueError: the part has another form."""
        match part:
            case ["module", str(name), str(path), bool(is_package), str(code)]:
                try:
                    content = binascii.a2b_base64(code)
                except binascii.Error as err:
                    raise ValueError(f"{name}: {err}") from err
                self.loaders[name] = _Carried(name, path, content, is_package=is_package)
            case ["extension", str(name), str(path)]:
                # The controller opens an extension's file itself, by its whole path: the child has
                # just looked that path up, so its dentries are cached and no lookup waits.
                self.loaders[name] = ExtensionFileLoader(name, path)
            case _:
                raise ValueError("what was told is no module")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How a module is loaded; None: its code has not come from the child."""
        # Any: of Python 3.15 mypy's stubs know loaders by a method that 3.15 has no more.
        loader: Any = self.loaders.get(fullname)
        if loader is None:
            return None
        return spec_from_file_location(fullname, loader.path, loader=loader)

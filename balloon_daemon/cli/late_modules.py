"""Modules that a running balloond comes to need: a child reads their code, the controller runs it.

To import a module is to look names up, which whoever may list their directory can keep waiting,
and to read files. The child that reads a configuration anew does that for the drivers which the
configuration needs, and hands over the code of each module. The controller runs that code a module
at a time, and rests in between.
"""

import base64
import binascii
import marshal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType

from balloon_daemon.cli.asyncio_lean import Later, asyncio
from balloon_daemon.cli.asyncio_lean import load as load_module

SHARE = 1 / 8
"""The part of the event loop's time that modules may take, as the API's clients: a driver's are
there after half a second. The largest takes some 2 ms at once."""


def carried_modules(load: Callable[[], object]) -> Iterator[list[object]]:
    """Imports modules, and tells the code of each, those that others need before these.

    Args:
        load: imports them.

    Raises:
        ValueError: they cannot be imported; says which and the remedy.
    """
    before = _loaded()
    try:
        load()
    except ImportError as err:
        raise ValueError(f"{err}; install balloond anew") from err
    # In the order in which they were loaded: importlib puts a module at the end of ``sys.modules``
    # once it has run.
    for name in [name for name in sys.modules if name not in before]:
        spec = sys.modules[name].__spec__
        match None if spec is None else spec.loader:
            case SourceFileLoader() as loader:
                code = base64.b64encode(marshal.dumps(loader.get_code(name))).decode()
                yield ["module", name, loader.path, loader.is_package(name), code]
            case ExtensionFileLoader() as loader:
                yield ["extension", name, loader.path]


async def run_modules(carried: Sequence[object]) -> None:
    """Imports modules whose code was told; those that there are already stay as they are.

    Raises:
        OSError: they are no such modules, or fail.
    """
    modules = _Modules()
    try:
        for part in carried:
            modules.take(part)
        sys.meta_path.insert(0, modules)
        for name in modules.loaders:
            if name not in _loaded():
                began_s = time.monotonic()
                load_module(name)
                await asyncio.sleep((time.monotonic() - began_s) * (1 / SHARE - 1))
    except (ImportError, ValueError) as err:
        raise OSError(0, f"the modules for these VMs cannot be loaded: {err}") from err
    finally:
        if modules in sys.meta_path:
            sys.meta_path.remove(modules)


def _loaded() -> set[str]:
    """The modules that are loaded: a ``Later`` only stands for one."""
    return {name for name, module in sys.modules.items() if not isinstance(module, Later)}


class _Carried(SourceFileLoader):
    """The loader of a module whose code was told: it opens no file."""

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
    """Finds modules whose code was told: a finder of ``sys.meta_path``."""

    def __init__(self) -> None:
        self.loaders: dict[str, _Carried | ExtensionFileLoader] = {}

    def take(self, part: object) -> None:
        """Takes a part of ``carried_modules``; raises ValueError: it is none."""
        match part:
            case ["module", str(name), str(path), bool(is_package), str(code)]:
                try:
                    content = base64.b64decode(code)
                except binascii.Error as err:
                    raise ValueError(f"{name}: {err}") from err
                self.loaders[name] = _Carried(name, path, content, is_package=is_package)
            case ["extension", str(name), str(path)]:
                # Its file is opened here, by its whole name, which the child has just looked up.
                self.loaders[name] = ExtensionFileLoader(name, path)
            case _:
                raise ValueError("what was told is no module")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How a module is loaded; None: it is none of these."""
        if (loader := self.loaders.get(fullname)) is None:
            return None
        return spec_from_file_location(fullname, loader.path, loader=loader)

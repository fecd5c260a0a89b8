"""Stand-ins for modules of which a process uses little.

A stand-in in ``sys.modules`` has the few names of its module that are used, and loads the module
when another name is used.
"""

import sys
from types import ModuleType


class StandIn(ModuleType):
    """Stands for a module in ``sys.modules`` until something else in it is used, and forwards to
    it.

    Args:
        name: the module's name.
        given: what the stand-in has by itself.
    """

    def __init__(self, name: str, given: dict[str, object]) -> None:
        super().__init__(name)
        vars(self).update(given)

    def __getattr__(self, name: str) -> object:
        # The import system asks each module for names such as __path__, which does not use the
        # module.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(load(self.__name__), name)


def load(name: str) -> ModuleType:
    """The module itself, in its stand-in's place."""
    if isinstance(sys.modules.get(name), StandIn):
        del sys.modules[name]
    # Not by importlib, which takes a millisecond to import.
    __import__(name)
    return sys.modules[name]

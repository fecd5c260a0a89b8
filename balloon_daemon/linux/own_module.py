"""The command that runs a module of balloond in an interpreter of its own."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def own_module(name: str) -> list[str]:
    """The beginning of the command, which the module's arguments follow.

    ``python -m`` finds the module only where balloond is installed for every program, and takes
    another one of its name that PYTHONPATH has before. So this interpreter puts the directory that
    has balloond's package first on its path; -P keeps the current directory off it.

    Args:
        name: the module, such as ``balloon_daemon.fake_guest``.
    """
    load = (
        f"import runpy, sys; sys.path.insert(0, {str(_ROOT)!r}); "
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-P", "-c", load]

"""A template whose code a test has changed: a program of its own, so the change is a text."""

from balloon_daemon.device import forker_start

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import balloon_daemon
sys.path += sys.argv[3:]
{change}
from balloon_daemon.device.forker_start import start
start(*sys.argv[1:])
"""


def another_template(change: str) -> tuple[str, ...]:
    """What ``template.PROGRAM`` is to be.

    Args:
        change: Python that is run in the template before it begins, the package found.
    """
    root = forker_start.__file__.removesuffix("/balloon_daemon/device/forker_start.py")
    return ("-c", PROGRAM.replace("{root!r}", repr(root)).replace("{change}", change))

"""A template with code changed by a test; it is a program of its own, so the change is source
text."""

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
    """The value for ``template.PROGRAM``.

    Args:
        change: Python that runs in the template before it begins, when the package can be
            imported.
    """
    root = forker_start.__file__.removesuffix("/balloon_daemon/device/forker_start.py")
    return ("-c", PROGRAM.replace("{root!r}", repr(root)).replace("{change}", change))

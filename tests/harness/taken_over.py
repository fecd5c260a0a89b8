"""A balloond whose first VM's device runs the code of its guest, which has taken it over."""

import sys

from tests.fakes.another_template import another_template

PROGRAM = """
import sys
sys.argv = sys.argv[1:]
from balloon_daemon.device import template
template.PROGRAM = {template!r}
from balloon_daemon.__main__ import main
sys.exit(main())
"""

TEMPLATE = """
import os
import select
from balloon_daemon.device import forker, loop
from balloon_daemon.tube.messages import Progress, Ready, Stats, encode_up

def send(tube, report):
    try:
        os.write(tube.fileno(), report)
    except BlockingIOError:
        pass

def live_on():
    # Not by the tube's functions: the filter refuses what they call after the start.
    while True:
        select.poll().poll()

def flood(tube):
    stats = encode_up(Stats(tuple((tag, 1 << 30) for tag in range(16))))
    progress = encode_up(Progress())
    while True:
        send(tube, stats)
        send(tube, progress)

def garbage(tube):
    send(tube, b"\\xff" * 57)
    live_on()

def empty(tube):
    os.write(tube.fileno(), b"")
    live_on()

def shut(tube):
    os.close(tube.fileno())
    live_on()

def hang(path):
    os.open(path, os.O_RDWR)

become, misdeed, path = forker.become_device, {misdeed}, {path!r}

def become_taken_over(spec, *rest):
    if spec.name == "balloon-vm1":
        def run(self):
            send(self._tube, encode_up(Ready()))
            misdeed(self._tube)
        loop.DeviceLoop.run = run
        if path:
            hang(path)
    become(spec, *rest)

forker.become_device = become_taken_over
"""


def launcher(misdeed: str, path: str = "") -> tuple[str, ...]:
    """A daemon's launcher under which the device of vm1 misbehaves.

    Args:
        misdeed: ``flood``: sends valid reports for ever; ``garbage``: sends a message that no
            device sends; ``empty``: sends a message of no bytes; ``shut``: closes its end of
            the tube and lives on; ``hang``: hangs in closing the file at ``path``.
    """
    change = TEMPLATE.replace("{misdeed}", misdeed).replace("{path!r}", repr(path))
    program = PROGRAM.replace("{template!r}", repr(another_template(change)))
    return (sys.executable, "-c", program)

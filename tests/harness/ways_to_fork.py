"""Every way in which balloond forks a device."""

import os
import signal
from enum import Enum

from balloon_daemon.device.process import NotYetError
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.device.template import Template
from tests.harness.waiting import wait_until


class Way(Enum):
    """How a device is forked."""

    TEMPLATE = "by the template"
    RESTARTED = "by a template that was started again"


def end_template(template: Template) -> None:
    """Kills it without reaping it, as the kernel's OOM killer does."""
    assert template.pid is not None
    os.kill(template.pid, signal.SIGKILL)
    # Wait for its death: until then it could still receive a request.
    os.waitid(os.P_PID, template.pid, os.WEXITED | os.WNOWAIT)


class PatientFork:
    """A ``Fork`` that asks again after NotYetError, as a supervisor does.

    Args:
        template: forks.
    """

    def __init__(self, template: Template) -> None:
        self._template = template

    def __call__(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> int:
        def fork() -> int | None:
            try:
                return self._template.fork(spec, tube_fd, stderr_fd, parent)
            except NotYetError:
                return None

        pid = wait_until(fork, what="a device is forked")
        assert pid is not None
        return pid


def fork_by(template: Template, way: Way) -> PatientFork:
    """Makes a running template fork devices in a certain way."""
    if way is Way.RESTARTED:
        end_template(template)
    return PatientFork(template)

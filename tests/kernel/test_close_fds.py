"""Closing what a device does not need: never more than that, whatever the numbers are."""

import os

import pytest

from balloon_daemon.linux.jail import close_fds_except


@pytest.mark.parametrize("keep", [[0, 2], [0, 1, 2], [2, 4], [0]])
def test_exactly_the_kept_descriptors_stay_open(keep: list[int]) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for fd in range(6):
                os.dup2(os.open("/dev/null", os.O_RDWR), fd)
            close_fds_except(keep)
            status = 0 if [fd for fd in range(100) if _is_open(fd)] == sorted(keep) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

"""Whether two descriptors are of one open file, without asking a file that may never answer."""

import os

import pytest

from balloon_daemon.linux.libc import same_open_file


def test_only_memory_is_asked_which_file_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = os.open(__file__, os.O_RDONLY), os.open(__file__, os.O_RDONLY)
    memory = os.memfd_create("guest")
    again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
    asked: list[int] = []
    fstat = os.fstat

    def asking(fd: int) -> os.stat_result:
        asked.append(fd)
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", asking)
    try:
        assert not same_open_file(one, other)
        assert same_open_file(one, one)
        assert asked == []
        assert same_open_file(memory, again)
    finally:
        for fd in (one, other, memory, again):
            os.close(fd)

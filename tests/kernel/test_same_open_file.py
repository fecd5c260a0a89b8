"""Whether two descriptors are of one file, without asking a file that may never answer."""

import os

import pytest

from balloon_daemon.linux.libc import same_open_file
from balloon_daemon.linux.memory import memory_inode


def test_only_memory_is_asked_which_file_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = os.open(__file__, os.O_RDONLY), os.open(__file__, os.O_RDONLY)
    memory = os.memfd_create("guest")
    again, another = os.open(f"/proc/self/fd/{memory}", os.O_RDWR), os.memfd_create("guest")
    asked: list[int] = []
    fstat = os.fstat

    def asking(fd: int) -> os.stat_result:
        asked.append(fd)
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", asking)
    try:
        assert not same_open_file(one, other)
        assert same_open_file(one, one)
        assert memory_inode(one) is None
        assert asked == []
        assert memory_inode(memory) == memory_inode(again)
        assert memory_inode(memory) != memory_inode(another)
    finally:
        for fd in (one, other, memory, again, another):
            os.close(fd)

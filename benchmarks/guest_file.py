"""Guest memory in a file, touched and mapped as a VMM has it, and what the host holds of it."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.units import PAGE_SIZE

MADV_POPULATE_WRITE = 23
"""asm-generic/mman-common.h, Linux 5.14: faults every page in, writable."""

Pfns = NDArray[np.uint32]


class GuestFile:
    """A shared mapping of a whole file; what is not ``touch``ed takes no memory.

    Args:
        fd: the file, the GuestFile's from now on.
        size_bytes: its length.
        huge: asks for huge pages (MADV_HUGEPAGE).
    """

    def __init__(self, fd: int, size_bytes: int, *, huge: bool = False) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        os.ftruncate(fd, size_bytes)
        self.map = mmap.mmap(fd, size_bytes)
        if huge:
            self.map.madvise(mmap.MADV_HUGEPAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    @classmethod
    def in_memory(cls, size_bytes: int) -> "GuestFile":
        """A memfd of ordinary 4 KiB pages, as QEMU's memory-backend-memfd."""
        return cls(os.memfd_create("bench-guest"), size_bytes)

    @classmethod
    def at(cls, path: Path, size_bytes: int, *, huge: bool) -> "GuestFile":
        """A new file on a mounted tmpfs or hugetlbfs."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return cls(fd, size_bytes, huge=huge)

    def close(self) -> None:
        """Gives the memory back; the mapping goes with the last reference to it."""
        os.ftruncate(self.fd, 0)
        os.close(self.fd)

    def touch(self, size_bytes: int | None = None) -> None:
        """Makes pages resident and maps them, as a guest that has used its memory.

        Args:
            size_bytes: how much of it, from its beginning; all where it is not said.
        """
        self.map.madvise(MADV_POPULATE_WRITE, 0, size_bytes or self.size_bytes)

    def view(self) -> memoryview:
        """All of its bytes."""
        return memoryview(self.map)

    def blocks_bytes(self) -> int:
        """What the host holds for the file."""
        return os.fstat(self.fd).st_blocks * 512

    def resident(self) -> NDArray[np.bool_]:
        """For each 4 KiB page whether it is in the host's memory, asked by mincore(2).

        Of a shared mapping mincore looks into the page cache, so what it denies nobody has.

        Raises:
            OSError: the kernel refused.
        """
        pages = self.size_bytes // PAGE_SIZE
        answer = bytearray(pages)
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (
            ctypes.c_void_p(self._address),
            ctypes.c_size_t(self.size_bytes),
            (ctypes.c_ubyte * pages).from_buffer(answer),
        )
        if libc.mincore(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        held: NDArray[np.bool_] = (np.frombuffer(answer, np.uint8) & 1).astype(np.bool_)
        return held

    def huge_mapped_kib(self) -> int:
        """How much of the mapping is mapped by huge pages, in KiB (smaps: ShmemPmdMapped)."""
        start = f"{self._address:x}-"
        mapped, ours = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if line[:1] in "0123456789abcdef" and "-" in line.split(" ", 1)[0]:
                ours = line.startswith(start)
            elif ours and line.startswith(("ShmemPmdMapped:", "FilePmdMapped:")):
                mapped += int(line.split()[1])
        return mapped

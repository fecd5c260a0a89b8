"""CPython's own knobs, through its C API: what no module of Python's reaches."""

import ctypes
from collections.abc import Callable
from typing import NoReturn

from balloon_daemon.linux.libc import LIBC

RESERVED_SLOTS = 1 << 16
"""Room for 1,000 calls, Python's own limit, of 65 slots each. Few functions that a device runs
need more than 20, the largest 67."""


class _ArenaAllocator(ctypes.Structure):
    """PyObjectArenaAllocator (Include/cpython/objimpl.h)."""

    _fields_ = (
        ("ctx", ctypes.c_void_p),
        ("alloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


def _without_arenas() -> _ArenaAllocator:
    """An allocator that never has an arena, and gives arenas back as the present one does."""
    allocator = _ArenaAllocator()
    ctypes.pythonapi.PyObject_GetArenaAllocator(ctypes.byref(allocator))
    # alloc(ctx, size) becomes labs(0), which is 0: no memory. It has to be C that makes no Python
    # object, as it is called while one is being made.
    allocator.ctx = None
    allocator.alloc = ctypes.cast(LIBC.labs, ctypes.c_void_p)
    return allocator


_set_arena_allocator = ctypes.pythonapi.PyObject_SetArenaAllocator
_set_arena_allocator.restype = None
_NO_ARENAS = ctypes.byref(_without_arenas())


def run_without_new_arenas(function: Callable[[], NoReturn]) -> NoReturn:
    """Calls what is the rest of this process's life; CPython maps no memory itself from here on.

    CPython maps its arenas of small objects past malloc, and what it asks the kernel for with each
    of them is its own affair: huge pages from 3.15 on (madvise(2)), a name in development mode
    (prctl(2)). A seccomp policy made for mmap(2) alone kills at that. Without new arenas a small
    object goes where the old ones have room, else to malloc, as it does whenever an arena cannot
    be had; each is freed to where it came from.

    The frames of Python's calls come from the same place, in chunks of 16 KiB, and without a new
    chunk a call is a MemoryError. So they get one that is large enough beforehand: a frame that is
    larger than a chunk has a chunk of the next power of two, and what it leaves is for others. The
    frame of this very function claims half a MiB, never touched, and leaves as much.
    """
    _set_arena_allocator(_NO_ARENAS)
    function()


run_without_new_arenas.__code__ = run_without_new_arenas.__code__.replace(
    co_stacksize=RESERVED_SLOTS
)

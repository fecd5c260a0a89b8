"""CPython's memory allocator, set through its C API, which no Python module reaches."""

import ctypes
from collections.abc import Callable
from typing import NoReturn

from balloon_daemon.linux.libc import LIBC

RESERVED_SLOTS = 1 << 16
"""Slots of the interpreter's stack of frames: enough for 1,000 nested calls, which is Python's
limit, of 65 slots each. Few functions that a device runs need more than 20 slots."""


class _ArenaAllocator(ctypes.Structure):
    """PyObjectArenaAllocator (Include/cpython/objimpl.h)."""

    _fields_ = (
        ("ctx", ctypes.c_void_p),
        ("alloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


def _without_arenas() -> _ArenaAllocator:
    """An allocator that refuses new arenas, and frees arenas as the present allocator does."""
    allocator = _ArenaAllocator()
    ctypes.pythonapi.PyObject_GetArenaAllocator(ctypes.byref(allocator))
    # CPython calls alloc(ctx, size) for a new arena. The C function labs serves as alloc: with
    # NULL as ctx it returns 0, which means "no memory". A Python function cannot serve: it makes
    # objects, and so would call alloc again while an object is being made.
    allocator.ctx = None
    allocator.alloc = ctypes.cast(LIBC.labs, ctypes.c_void_p)
    return allocator


_set_arena_allocator = ctypes.pythonapi.PyObject_SetArenaAllocator
_set_arena_allocator.restype = None
_NO_ARENAS = ctypes.byref(_without_arenas())


def run_without_new_arenas(function: Callable[[], NoReturn]) -> NoReturn:
    """Calls ``function`` for the rest of this process; CPython itself maps no memory from here on.

    CPython maps its arenas of small objects without malloc, and for each arena it may make further
    system calls: madvise(2) for huge pages from 3.15 on, prctl(2) to name it in development mode.
    A seccomp policy that allows only mmap(2) kills the process then. Without new arenas CPython
    puts a small object into an old arena where there is room, else asks malloc, as it does
    whenever an arena cannot be had; each object is freed to where it came from.

    The frames of Python's calls come from the same allocator, in chunks of 16 KiB, and without a
    new chunk a call raises MemoryError. So a large enough chunk is allocated beforehand: a frame
    larger than a chunk gets a chunk of the next power of two, and later frames use the rest of it.
    The frame of this function claims half a MiB, never touched, and leaves as much for later
    frames.
    """
    _set_arena_allocator(_NO_ARENAS)
    function()


run_without_new_arenas.__code__ = run_without_new_arenas.__code__.replace(
    co_stacksize=RESERVED_SLOTS
)

"""glibc's own knobs, through ctypes: what no module of Python's reaches."""

import ctypes

_libc = ctypes.CDLL(None, use_errno=True)

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.mallopt.restype = ctypes.c_int

_curbrk = ctypes.c_size_t.in_dll(_libc, "__curbrk")


def keep_heap_off_brk() -> None:
    """Makes malloc grow by mmap(2) alone, for good: neither brk(2) nor mremap(2) any more.

    A process under a seccomp policy without ``brk`` dies at the interpreter's first growth
    otherwise. Never trimming and never mapping single blocks keeps malloc in its main arena;
    with the program break set to the end of the address space, ``sbrk`` fails in user space and
    the arena goes on in mapped memory.

    Raises:
        OSError: this libc refuses; it is not glibc.
    """
    for option, value in ((_M_TRIM_THRESHOLD, 0x7FFFFFFF), (_M_MMAP_MAX, 0)):
        if not _libc.mallopt(option, value):
            raise OSError(f"mallopt({option}, {value}) was refused")
    _curbrk.value = 2**64 - 1

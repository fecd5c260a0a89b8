"""The C programs that balloond is measured against: compiled here and now, for this machine."""

import os
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.guest_file import GuestFile

_HERE = Path(__file__).parent
BUILD = _HERE.parent / "build/benchmarks"


class CompilerError(Exception):
    """No C compiler, or it refused."""


class CProgram:
    """A compiled program that gives a file's memory back.

    Raises:
        CompilerError: it cannot be compiled here.
    """

    def __init__(self, name: str) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self._path = BUILD / name
        self._input = BUILD / f"{name}-{os.getpid()}.in"
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(self._path), f"{_HERE / name}.c"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as err:
            raise CompilerError("there is no C compiler (cc)") from err
        if done.returncode:
            raise CompilerError(done.stderr.strip())

    def run(self, file: GuestFile, work: NDArray[np.generic]) -> tuple[float, float]:
        """Runs it on guest memory.

        Args:
            file: the memory.
            work: what the program reads, in its own layout.

        Returns:
            Elapsed seconds and CPU seconds of its calls.
        """
        self._input.write_bytes(np.ascontiguousarray(work).tobytes())
        try:
            done = subprocess.run(
                [self._path, str(file.fd), str(file.size_bytes), self._input],
                capture_output=True,
                text=True,
                check=True,
                pass_fds=[file.fd],
            )
        finally:
            self._input.unlink()
        elapsed, used = map(int, done.stdout.split())
        return elapsed / 1e9, used / 1e9


def floor() -> CProgram:
    """Frees the ranges that it is given, with the same calls as balloond and nothing else."""
    return CProgram("reclaim_floor")


def page_by_page() -> CProgram:
    """Frees each page by itself, as a simple device does."""
    return CProgram("reclaim_pages")

"""Kernel settings that a measurement needs: set, and put back whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGETLB_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


class SettingError(Exception):
    """A setting cannot be made here; says which and why."""


@contextmanager
def setting(path: Path, value: str) -> Iterator[str]:
    """Sets a kernel setting for a while.

    Args:
        path: of a file whose content is the setting, or several words with the chosen one in
            brackets.
        value: to write.

    Yields:
        What the kernel made of it.

    Raises:
        SettingError: it cannot be read or written.
    """
    try:
        before = _chosen(path.read_text())
        path.write_text(value)
    except OSError as err:
        raise SettingError(f"{path} cannot be set: {err.strerror}") from err
    try:
        yield _chosen(path.read_text())
    finally:
        path.write_text(before)


def _chosen(content: str) -> str:
    words = content.split()
    return next((word.strip("[]") for word in words if word.startswith("[")), words[0])

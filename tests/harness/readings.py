"""Notes which files a module reads once."""

from types import ModuleType

import pytest

from balloon_daemon.linux.figures import MOST_BYTES, Content, content_of, read_once


def note_readings(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that a module reads by ``read_once`` from now on, in this order."""
    read: list[str] = []

    def noted(path: str, most_bytes: int = MOST_BYTES, content: Content = content_of) -> bytes:
        read.append(path)
        return read_once(path, most_bytes, content)

    monkeypatch.setattr(module, "read_once", noted)
    return read

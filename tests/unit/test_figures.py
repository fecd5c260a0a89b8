from pathlib import Path

import psutil
import pytest

from balloon_daemon.linux import figures
from balloon_daemon.linux.figures import MAX_KEPT, read_figures
from tests.harness.faults import fault


@fault("any user puts many locks on a file that balloond reads")
def test_file_that_is_read_again_is_not_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "available"
    path.write_text("100")
    monkeypatch.setattr(figures, "_kept", {})
    closed = list[int]()
    with monkeypatch.context() as watched:
        watched.setattr("balloon_daemon.linux.events.os.close", closed.append)
        found = [read_figures(str(path)) for _ in range(3)]
    assert (found, closed) == ([b"100"] * 3, [])


def test_file_that_changes_or_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "available", tmp_path / "other"
    path.write_text("100")
    found = [read_figures(str(path))]
    path.write_text("20")
    found.append(read_figures(str(path)))
    other.write_text("3")
    other.rename(path)
    found.append(read_figures(str(path)))
    assert found == [b"100", b"20", b"3"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="available"):
        read_figures(str(path))


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "available"
    path.write_bytes(bytes(200_000))
    assert [len(read_figures(str(path), most)) for most in (256, 1 << 24)] == [256, 200_000]


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_kept", {})
    for number in range(MAX_KEPT + 5):
        path = tmp_path / str(number)
        path.write_text("1")
        read_figures(str(path))
    opened = [file.path for file in psutil.Process().open_files()]
    assert len([name for name in opened if name.startswith(str(tmp_path))]) == MAX_KEPT

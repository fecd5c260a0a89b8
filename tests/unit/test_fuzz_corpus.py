"""Files of kept fuzz inputs: what is written is read again, and the kept ones are in order."""

from pathlib import Path

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS, Target


def test_written_is_read_again_sorted_and_once_each(tmp_path: Path) -> None:
    path = tmp_path / "target.hex"
    corpus.write(path, [b"\x02", b"", b"\x01\x00", b"\x02"])
    assert path.read_text() == "-\n0100\n02\n"
    assert corpus.read(path) == [b"", b"\x01\x00", b"\x02"]


def test_comments_stay_with_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "target.hex"
    path.write_text("# about all\n03 # about three\n02  # about two\n")
    corpus.write(path, [b"\x01", b"\x02"])
    assert path.read_text() == "# about all\n01\n02  # about two\n"


def test_no_file_has_no_inputs(tmp_path: Path) -> None:
    assert corpus.read(tmp_path / "target.hex") == []


@pytest.mark.parametrize("line", ["0", "zz", "01 # x\n0x02"])
def test_line_that_is_no_input_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "target.hex"
    path.write_text(f"{line}\n")
    with pytest.raises(corpus.CorpusError, match=r"target\.hex:[12]: '.*' is no input"):
        corpus.read(path)


def test_unpacked_folder_has_each_input_and_nothing_of_before(tmp_path: Path) -> None:
    path, folder = tmp_path / "target.hex", tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    corpus.write(path, [b"", b"\x01"])
    corpus.unpack(path, folder)
    assert sorted(file.read_bytes() for file in folder.iterdir()) == [b"", b"\x01"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_kept_inputs_are_sorted_and_short_enough(target: Target) -> None:
    kept = corpus.read(target.corpus)
    assert kept == sorted(set(kept))
    assert len(kept) > 0
    assert max(map(len, kept)) <= target.max_bytes

"""config/files.py: which files are read, in which order, and which are not trusted."""

import os
from pathlib import Path

import pytest

from balloon_daemon.config.files import DROP_INS, ConfigText, read_texts
from tests.harness.faults import fault
from tests.harness.needs import needs_root
from tests.harness.other_user import NOBODY

REMEDY = "make it a readable file, or remove it"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "b.toml"
    path.write_text("main")
    (tmp_path / DROP_INS).mkdir()
    return path


def drop_in(file: Path, name: str, text: str = "") -> Path:
    """Makes a drop-in beside a configuration file."""
    path = file.parent / DROP_INS / name
    path.write_text(text or name)
    return path


def read(file: Path, *, optional: bool = False) -> list[ConfigText]:
    """The texts of files without a fault."""
    mistakes: list[str] = []
    texts = read_texts(file, mistakes, optional=optional)
    assert mistakes == []
    return texts


def refused(file: Path, *, optional: bool = False) -> tuple[list[str], list[str]]:
    """The texts that are read all the same, and why the other files are not; by their names."""
    mistakes: list[str] = []
    texts = read_texts(file, mistakes, optional=optional)
    return [text for _, text in texts], [each.removeprefix(f"{file.parent}/") for each in mistakes]


def test_drop_ins_follow_the_file_in_the_order_of_their_names(file: Path) -> None:
    for name in ("20.toml", "9.toml", "B.toml", "a.toml", "é.toml"):
        drop_in(file, name)
    order = ["main", "20.toml", "9.toml", "B.toml", "a.toml", "é.toml"]
    assert [text for _, text in read(file)] == order
    paths = [str(file), *(str(file.parent / DROP_INS / name) for name in order[1:])]
    assert [path for path, _ in read(file)] == paths


def test_hidden_files_and_those_of_other_kinds_are_no_drop_ins(file: Path) -> None:
    for name in (".a.toml", "a.toml~", "a.toml.dpkg-old", "README", "toml"):
        drop_in(file, name)
    assert read(file) == [ConfigText(str(file), "main")]


def test_byte_order_mark_is_not_part_of_the_text(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfmain")
    assert read(file) == [ConfigText(str(file), "main")]


def test_file_without_a_directory_of_drop_ins_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text("main")
    assert read(path) == [ConfigText(str(path), "main")]


def test_drop_ins_are_read_where_the_file_is_absent_and_may_be(file: Path) -> None:
    drop_in(file, "a.toml")
    file.unlink()
    assert [text for _, text in read(file, optional=True)] == ["a.toml"]
    said = "b.toml: No such file or directory; name a file that there is"
    assert refused(file) == (["a.toml"], [said])


def test_link_that_leads_nowhere_is_no_absent_file(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")
    _, (said,) = refused(file, optional=True)
    assert said == "b.toml: No such file or directory; name a file that there is"


@fault("configuration file that cannot be read or trusted")
def test_each_drop_in_that_cannot_be_read_is_named_and_the_others_are_read(file: Path) -> None:
    drop_in(file, "a.toml")
    drop_in(file, "b.toml").write_bytes(b"\n\xff")
    os.mkfifo(file.parent / DROP_INS / "c.toml")
    (file.parent / DROP_INS / "d.toml").mkdir()
    os.truncate(drop_in(file, "e.toml"), 1 << 30)
    (file.parent / DROP_INS / "f.toml").symlink_to("nowhere")
    drop_in(file, "g.toml")
    assert refused(file) == (
        ["main", "a.toml", "g.toml"],
        [
            "balloond.d/b.toml:2: this line is not UTF-8; save the file as UTF-8",
            f"balloond.d/c.toml: is a pipe, not a file; {REMEDY}",
            f"balloond.d/d.toml: Is a directory; {REMEDY}",
            f"balloond.d/e.toml: is larger than 1 MiB; {REMEDY}",
            f"balloond.d/f.toml: No such file or directory; {REMEDY}",
        ],
    )


def test_file_in_the_place_of_the_directory_is_a_mistake(file: Path) -> None:
    (file.parent / DROP_INS).rmdir()
    (file.parent / DROP_INS).touch()
    said = "balloond.d: Not a directory; make it a readable directory, or remove it"
    assert refused(file) == (["main"], [said])


@pytest.mark.parametrize("name", ["b.toml/x", "a\0b"])
def test_path_that_leads_nowhere_is_one_mistake(name: str, file: Path) -> None:
    mistakes: list[str] = []
    assert read_texts(file.parent / name, mistakes) == []
    assert len(mistakes) == 1


@fault("configuration file that cannot be read or trusted")
@needs_root
@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_drop_in_that_others_may_write_is_refused_by_root(mode: int, file: Path) -> None:
    drop_in(file, "a.toml").chmod(mode)
    said = f"balloond.d/a.toml: others may write it (mode {mode:o}); chmod go-w it"
    assert refused(file) == (["main"], [said])


@fault("configuration file that cannot be read or trusted")
@needs_root
def test_another_users_drop_in_is_refused_by_root(file: Path) -> None:
    os.chown(drop_in(file, "a.toml"), NOBODY, NOBODY)
    said = f"balloond.d/a.toml: belongs to user {NOBODY}, who could change it; chown root it"
    assert refused(file) == (["main"], [said])


@fault("configuration file that cannot be read or trusted")
@needs_root
@pytest.mark.parametrize("names", [[], ["a.toml"]])
def test_directory_to_which_others_may_add_drop_ins_is_refused_by_root(
    names: list[str], file: Path
) -> None:
    for name in names:
        drop_in(file, name)
    directory = file.parent / DROP_INS
    directory.chmod(0o777)
    said = (
        f"balloond.d: others may write to {directory} (mode 777): files could be added; let root "
        "alone write there"
    )
    assert refused(file) == (["main"], [said])

"""Odd bytes in a policy file: they pass in comments, are refused elsewhere, reach no terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.errors import PolicyFileError, PolicyProblem, printable
from balloon_daemon.seccomp.filter import compile_policy
from balloon_daemon.seccomp.policy import Dialect
from tests.harness.faults import fault

Output = pytest.CaptureFixture[str]

ODD = {
    "no UTF-8": b"\xff\xfe\x80",
    "half a character": b"\xc3",
    "a surrogate": b"\xed\xa0\x80",
    "a NUL byte": b"\0",
    "an escape sequence": b"\x1b[31m\x1b]0;title\x07",
    "a C1 control": b"\xc2\x9b31m",
    "a line separator": "\u2028".encode(),
    "a marked direction": "\u202e\u2066".encode(),
    "a no-break space": "\u00a0".encode(),
    "a next line": "\u0085".encode(),
    "a file separator": b"\x1c",
    "a backspace": b"\b\b\b",
    "an accent": "é".encode(),
    "an emoji": "\U0001f388".encode(),
    "a byte order mark": "\ufeff".encode(),
}
VERBS = ["check", "explain", "test", "compile", "pfc", "run"]
# Running starts processes: some will do.
EACH = [(verb, odd) for verb in VERBS for odd in list(ODD.values())[:: 5 if verb == "run" else 1]]


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "odd.policy"
    path.write_bytes(content)
    return path


def verb(name: str, path: Path) -> list[str]:
    return {
        "check": ["check", str(path)],
        "explain": ["explain", str(path)],
        "test": ["test", str(path), "read(1)"],
        "compile": ["compile", str(path), "-o", os.devnull],
        "pfc": ["compile", str(path), "-o", "-", "--format", "pfc"],
        "run": ["run", "--from", "exec", str(path), "--", "true"],
    }[name]


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


@fault("odd bytes in a policy file")
@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_bytes_of_any_kind_pass_in_comments(odd: bytes, dialect: Dialect, tmp_path: Path) -> None:
    path = write(tmp_path, b"# " + odd + b"\nread: return EPERM # " + odd + b"\n#" + odd)
    assert compile_policy(path, dialect=dialect).bpf


@fault("odd bytes in a policy file")
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b"read: 1"), (b"read: arg0 ", b"== 1"), (b"read:", b"1"), (b"re", b"ad: 1")],
)
def test_bytes_that_are_no_words_are_refused_at_their_place(
    before: bytes, after: bytes, odd: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path, b"close: 1\n" + before + odd + after + b"\n")
    with pytest.raises(PolicyFileError) as caught:
        compile_policy(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, len(before) + 1)
    assert problem.message.endswith("is not part of the language")
    assert harmless(str(problem))


@fault("odd bytes in a policy file")
@pytest.mark.parametrize(("name", "odd"), EACH, ids=str)
def test_verbs_show_lines_with_odd_comments_unharmed(
    name: str, odd: bytes, tmp_path: Path, capsys: Output
) -> None:
    path = write(tmp_path, b"read: arg0 == 1; return EPERM # " + odd + b"\nexecve: 1\n")
    status = main(["seccomp", *verb(name, path)])
    told = capsys.readouterr()
    assert status == (0 if name != "run" else 128 + 31)
    assert harmless(told.out)
    assert harmless(told.err)
    assert f"{path}:1:18: warning: where the expression holds" in told.out + told.err


@pytest.mark.parametrize(("name", "odd"), EACH, ids=str)
def test_verbs_refuse_odd_words_alike(
    name: str, odd: bytes, tmp_path: Path, capsys: Output
) -> None:
    path = write(tmp_path, b"read: 1\nclose" + odd + b": 1\n")
    assert main(["seccomp", *verb(name, path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{path}:2:6: ")
    assert harmless(told.err)


def test_byte_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="1:7: byte 0xe9 is not part of the language"):
        compile_policy(write(tmp_path, "read: é".encode("latin-1")))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("\ufeffread: 1".encode(), "1:1: the file begins with a byte order mark (U+FEFF): save"),
        ("\ufeff# x\nread: 1".encode(), "1:1: the file begins with a byte order mark (U+FEFF)"),
        ("read: 1".encode("utf-16"), "1:1: the file is UTF-16 or UTF-32: save it as UTF-8"),
        ("read: 1".encode("utf-32"), "1:1: the file is UTF-16 or UTF-32: save it as UTF-8"),
    ],
)
def test_file_that_begins_with_a_mark_is_refused_with_the_remedy(
    content: bytes, told: str, tmp_path: Path
) -> None:
    with pytest.raises(PolicyFileError) as caught:
        compile_policy(write(tmp_path, content))
    (problem,) = caught.value.problems
    assert told in str(problem)


@pytest.mark.parametrize(
    "content", [b"read: 1\r\nwrite: 1\r\n", b"read: 1\rwrite: 1\r", b"read: 1\nwrite: 1\r\r\n"]
)
def test_line_may_end_in_any_way(content: bytes, tmp_path: Path) -> None:
    plain = compile_policy(write(tmp_path, b"read: 1\nwrite: 1\n")).bpf
    assert compile_policy(write(tmp_path, content)).bpf == plain


def test_mistake_in_a_file_of_other_line_ends_has_its_line(tmp_path: Path) -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        with pytest.raises(PolicyFileError, match=r":3:1: unknown system call reed"):
            compile_policy(write(tmp_path, end.join([b"dup: 1", b"# x", b"reed: 1", b""])))


@fault("odd bytes in a policy file")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", VERBS)
def test_standard_output_that_lacks_a_character_has_it_escaped(
    encoding: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode("ünï\udcffcode \U0001f388".encode("utf-8", "surrogateescape"))
    folder.mkdir()
    path = write(folder, "read: arg0 == 1; return EPERM # \U0001f388 é \x1b".encode())
    done = subprocess.run(
        [sys.executable, "-m", "balloon_daemon.ctl.main", "seccomp", *verb(name, path)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode in (0, 128 + 31), done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"odd.policy:1:18: warning: " in done.stdout + done.stderr


def test_json_of_odd_bytes_is_ascii(tmp_path: Path, capsys: Output) -> None:
    path = write(tmp_path, b"reed: 1 # \xff\x1b\xe2\x80\xa8\n")
    assert main(["seccomp", "check", "--json", str(path)]) == 2
    told = capsys.readouterr().out
    assert told.isascii()
    assert json.loads(told)["files"][0]["errors"][0]["source"] == "reed: 1 # \udcff\x1b\u2028"


def test_call_of_odd_bytes_is_refused(tmp_path: Path, capsys: Output) -> None:
    path = str(write(tmp_path, b"read: 1\n"))
    for call in ("\udcff", "read(\x1b)", "read(\u2028)", "read\0", "read(1)\rwrite(1)", "re\nad"):
        assert main(["seccomp", "test", path, call]) == 2
        told = capsys.readouterr()
        assert told.err.startswith("call:1:")
        assert harmless(told.err)


@pytest.mark.parametrize("name", ["check", "explain", "compile"])
def test_name_of_a_file_is_shown_unharmed(name: str, tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "a\x1b[31m\nb.policy"
    for content in (None, b"read: 1\n", b"reed: 1\n"):
        if content is not None:
            path.write_bytes(content)
        main(["seccomp", *verb(name, path)])
        told = capsys.readouterr()
        assert harmless(told.out)
        assert harmless(told.err)
        assert told.out.count("a\\x1b[31m\\x0ab.policy") + told.err.count("\\x0a") >= (
            0 if content == b"read: 1\n" and name != "check" else 1
        )


# --- what is shown of a place ---------------------------------------------------------------


def problem(source: str, column: int, length: int = 1, message: str = "wrong") -> list[str]:
    return str(PolicyProblem("f", 1, column, length, source, message)).splitlines()


def test_carets_stand_below_their_place_behind_escaped_characters() -> None:
    for before in ("", "\x1b", "\u2028\udcff", "\t", "\té\0", "x" * 500):
        _, source, carets = problem(f"{before}HERE and on", len(before) + 1, 4)
        assert source[carets.index("^") :].startswith("HERE")
        assert carets.strip() == "^^^^"


def test_long_line_is_shown_near_its_place() -> None:
    for at in (0, 10, 1000, 4990):
        source = "a" * at + "HERE" + "b" * 5000
        _, shown, carets = problem(source, at + 1, 4)
        assert shown[carets.index("^") :].startswith("HERE")
        assert len(shown) < 260


def test_place_behind_the_end_of_a_long_line_is_shown() -> None:
    _, shown, carets = problem("a" * 5000, 5001)
    assert carets.index("^") == len(shown)


def test_long_message_is_shown_in_part() -> None:
    (told,) = problem("", 1, message="begin " + "x" * 10_000 + " end")
    assert told.startswith("f:1:1: begin xxx")
    assert told.endswith("xxx end")
    assert len(told) < 700


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"), ("\x1b[0m", "\\x1b[0m"), ("a\nb\t", "a\\x0ab\\x09"),
        ("\u2028\u200f", "\\u2028\\u200f"), ("\udcff", "\\xff"), ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"), ("\x7f\x9b", "\\x7f\\x9b"),
    ],
)  # fmt: skip
def test_printable_escapes_what_is_not(text: str, shown: str) -> None:
    assert printable(text) == shown

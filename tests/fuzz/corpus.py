"""A target's kept inputs: a text file, one input a line in hexadecimal digits, sorted.

Behind an input, or on a line of its own, ``#`` begins a comment. An input of no bytes is ``-``.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

_EMPTY = "-"


class CorpusError(ValueError):
    """A line is no input; says where."""


def read(path: Path) -> list[bytes]:
    """All inputs of a file, as they stand there; none where there is no file.

    Raises:
        CorpusError: a line is neither hexadecimal digits nor a comment.
    """
    return [data for data, _ in _lines(path) if data is not None]


def write(path: Path, inputs: Iterable[bytes]) -> None:
    """Makes these a file's inputs, sorted; what it says of those that stay, stays.

    Comments on lines of their own stay too, before all inputs.
    """
    old = _lines(path)
    said = {data: comment for data, comment in old if data is not None}
    head = [f"# {comment}" if comment else "#" for data, comment in old if data is None]
    lines = [
        f"{data.hex() or _EMPTY}{f'  # {comment}' if (comment := said.get(data)) else ''}"
        for data in sorted(set(inputs))
    ]
    path.write_text("".join(f"{line}\n" for line in (*head, *lines)))


def unpack(path: Path, folder: Path) -> None:
    """Makes a folder anew that has each of a file's inputs in a file, as libFuzzer reads them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, data in enumerate(read(path)):
        (folder / f"{number:04}").write_bytes(data)


def _lines(path: Path) -> list[tuple[bytes | None, str]]:
    """Each line's input, if it has one, and its comment."""
    found: list[tuple[bytes | None, str]] = []
    text = path.read_text() if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        digits, _, comment = line.partition("#")
        digits = digits.strip()
        try:
            data = b"" if digits == _EMPTY else bytes.fromhex(digits)
        except ValueError as err:
            raise CorpusError(f"{path}:{number}: {digits!r} is no input") from err
        found.append((data if digits else None, comment.strip()))
    return found

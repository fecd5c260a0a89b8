"""Tables and keys of a configuration file as values: each one's place and its text in messages.
Pure."""

from collections.abc import Iterator, Mapping
from enum import Enum

from balloon_daemon.errors import printable
from balloon_daemon.named_tuple import NamedTuple

Key = tuple[str, ...]
"""A key or a table, by the names that lead to it from the top: ``("vm", "web", "floor")``."""


DEEPEST = 3
"""No key that balloond knows has more names than this; tables below are not read."""


class Unreadable(Enum):
    """Used in place of a value that is no TOML, for which a mistake has been noted already."""

    VALUE = "?"


UNREADABLE = Unreadable.VALUE


class Entry(NamedTuple):
    """A key or a table.

    Attributes:
        path: its place in the file.
        value: its value, as tomllib parses it. A dict is a table, whose tables and keys have
            entries of their own, down to ``DEEPEST``.
        line: counted from 1; 0: not known.
    """

    path: Key
    value: object
    line: int


class Where(NamedTuple):
    """A place in one of several files.

    Attributes:
        order: which file it is, counted as they are read.
        line: counted from 1; 0: not known.
        column: counted from 1, in characters; 0: the place is a whole line.
        file: the file's path.
    """

    order: int
    line: int
    column: int
    file: str

    def __str__(self) -> str:
        """``file:line:column``, as compilers write it, without the parts that are not known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def seen_from(self, other: "Where") -> str:
        """This place, for a mistake at another one: ``, in line 3`` of the same file."""
        if not self.line:
            return ""
        return f", in line {self.line}" if self.order == other.order else f", in {self}"


class Origin(NamedTuple):
    """Where a key was set, and to what.

    Attributes:
        where: the place.
        value: TOML's value.
    """

    where: Where
    value: object


def entries_of(content: Mapping[str, object], line: int = 0, above: Key = ()) -> Iterator[Entry]:
    """An entry for each table and key that tomllib found, tables before what is in them.

    Args:
        content: a table, as tomllib makes it.
        line: the line that each entry names as its place; 0: not known.
        above: the table's own place.
    """
    for name, value in content.items():
        path = (*above, name)
        yield Entry(path, value, line)
        if isinstance(value, dict) and len(path) < DEEPEST:
            yield from entries_of(value, line, path)


def table_said(path: Key) -> str:
    """A table as a file has it: ``[vm.web]``."""
    return f"[{'.'.join(map(_name_said, path))}]"


def key_said(path: Key) -> str:
    """A key with its table: ``[vm.web] floor``."""
    *table, key = path
    return f"{table_said(tuple(table))} {printable(key)}" if table else printable(key)


def _name_said(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else f'"{printable(name)}"'

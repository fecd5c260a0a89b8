"""Reads TOML statement by statement, to know the line of each key and every mistake. Pure.

``tomllib`` neither tells the lines of keys nor goes on after a mistake. So the text is split into
its statements (a table's header, or ``key = value``), and ``tomllib`` parses each of them alone:
the syntax of keys and values stays the parser's. This module finds only where a statement ends,
and which keys and tables are there twice. It takes several times as long as parsing the whole
text, so it is used for files with mistakes and for ``balloond --check``.
"""

import re
import tomllib

from balloon_daemon.config.entries import (
    DEEPEST,
    UNREADABLE,
    Entry,
    Key,
    entries_of,
    key_said,
    table_said,
)
from balloon_daemon.errors import printable
from balloon_daemon.named_tuple import NamedTuple

MOST_FAULTS = 100
"""Reading ends after this many violations of TOML's syntax: such a file is of another kind."""

_SHOWN = 60
"""How many characters of a line a message shows at most."""

_TOKEN = re.compile(
    r"""
      # Strings of several lines. Unclosed ones go to the end: they match always, so that nothing
      # is tried twice.
      \"{3} (?:[^"\\]+|\\(?:.|\Z)|"{1,2}(?!"))* (?:"{3,5}|\Z)
    | '{3} (?:[^']+|'{1,2}(?!'))* (?:'{3,5}|\Z)
    | "(?:\\.|[^"\\\n])*" | '[^'\n]*'
    | \#[^\n]*
    | (?P<open>[\[{]) | (?P<close>[\]}]) | (?P<end>\n)
    | [^"'\#\[\]{}\n]+ | .
    """,
    re.VERBOSE | re.DOTALL,
)
_NEXT = re.compile(
    r"""\n(?=[ \t]*(?:\[\[?[^\[\],\n]+\]\]?[ \t]*(?:\#[^\n]*)?(?:\n|\Z)
                     |(?:[\w.-]|"[^"\n]*"|'[^'\n]*')+[ \t]*=))""",
    re.VERBOSE,
)
"""The end of a line before one that looks like a header or a key: reading goes on there after a
bracket or a string that was never closed."""
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
"""How tomllib ends its messages."""
_BARE = re.compile(r"[^\"'\[{#]*[^\"'\[{#\d\s+._-][^\"'\[{#]*")
"""Matches a value that was meant to be a string: one without quotes that is no number either."""


class Fault(NamedTuple):
    """A violation of TOML's syntax.

    Attributes:
        line: counted from 1.
        column: counted from 1, in characters; 0: the mistake is in no single column.
        said: what is wrong, and the remedy.
    """

    line: int
    column: int
    said: str


class Statements(NamedTuple):
    """A file's content.

    Attributes:
        entries: all tables and keys, in the order of the text.
        faults: all violations of TOML's syntax, in the same order.
        is_complete: False: a statement was refused, so nobody knows which key it was meant to set.
    """

    entries: list[Entry]
    faults: list[Fault]
    is_complete: bool


def read_statements(text: str) -> Statements:
    """Reads a text, whether it is TOML or not."""
    # A last line without an end gets one: tomllib tells no column at the very end of a text.
    reader = _Reader(text.replace("\r\n", "\n").removesuffix("\n") + "\n")
    reader.read()
    return Statements(reader.entries, reader.faults, reader.is_complete)


class _Reader:
    """Reads a text from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self.entries: list[Entry] = []
        self.faults: list[Fault] = []
        self.is_complete = True
        self._text = text
        self._line = 1
        self._table: Key | None = ()
        """The table whose keys follow; None: its header could not be read, or it is one of several
        tables of one name (``[[NAME]]``)."""
        self._lines: dict[Key, int] = {}
        """Where each table with a header, and each key, was first."""
        self._in_table: set[Key] = set()
        """The keys since the last header: of a table that is there twice, only the second header
        is a mistake, and not each of its keys again."""

    def read(self) -> None:
        start = 0
        while start < len(self._text) and len(self.faults) < MOST_FAULTS:
            end = self._end(start)
            statement = self._text[start:end]
            content = _parsed(statement)
            if not isinstance(content, dict) and (restart := _NEXT.search(statement)):
                end = start + restart.end()
                statement = self._text[start:end]
                content = _parsed(statement)
            if not isinstance(content, dict):
                self._refuse(statement, content)
            elif content:
                self._take(statement, content)
            self._line += statement.count("\n")
            start = end
        if start < len(self._text):
            self.is_complete = False
            self._fault(0, f"{MOST_FAULTS} mistakes up to here: is this TOML? Mend those first")

    def _end(self, start: int) -> int:
        """The index at which the statement that begins at ``start`` ends: the end of its line, or
        of a later line while brackets or a string are open."""
        is_header, depth = None, 0
        for token in _TOKEN.finditer(self._text, start):
            if is_header is None and token[0].strip():
                is_header = bool(token["open"])
            depth += bool(token["open"]) - bool(token["close"])
            if token["end"] and (is_header or depth <= 0):
                return token.end()
        return len(self._text)

    def _take(self, statement: str, content: dict[str, object]) -> None:
        if not _is_header(statement):
            if self._table is not None:
                for entry in entries_of(content, self._line, self._table):
                    self._add(entry)
            return
        *_, last = entries_of(content)
        self._in_table.clear()
        if isinstance(last.value, list):  # [[NAME]]: the same header may follow
            self._header(last.path, again=True)
            self.entries.append(Entry(last.path, last.value, self._line))
            self._table = None
        else:
            self._header(last.path)
            for length in range(1, len(last.path) + 1):
                self.entries.append(Entry(last.path[:length], {}, self._line))

    def _header(self, path: Key, *, again: bool = False) -> None:
        line = self._lines.setdefault(path, self._line)
        if line != self._line and not again and len(path) < DEEPEST:
            what = "name each VM once" if path[0] == "vm" and len(path) == 2 else "join the two"
            self._fault(0, f"{table_said(path)}: it is there already, in line {line}; {what}")
        self._table = path

    def _add(self, entry: Entry) -> None:
        line = self._lines.setdefault(entry.path, self._line)
        if entry.path in self._in_table and not isinstance(entry.value, dict):
            said = f"it is there already, in line {line}; set each key once"
            self._fault(0, f"{key_said(entry.path)}: {said}")
        self._in_table.add(entry.path)
        self.entries.append(entry)

    def _fault(self, column: int, said: str, lines_on: int = 0) -> None:
        self.faults.append(Fault(self._line + lines_on, column, said))

    def _refuse(self, statement: str, err: Exception) -> None:
        """Notes a statement that is no TOML. Guesses which key or table it was meant to be:
        otherwise the keys below it would count as another table's, and its own as missing."""
        table = ""
        if _is_header(statement):
            name = statement.strip().strip("[]").partition("#")[0].strip()
            path = _path_of(f"[{name}]")
            if path is None and name.startswith("vm.") and not {*name} & {*"\"'"}:
                path = ("vm", name.removeprefix("vm."))  # [vm.my db]
            remedy = f"write it like {table_said(path or ('vm', 'web'))}"
            self._table = path
            self._in_table.clear()
            if path:
                self._lines.setdefault(path, self._line)
                self.entries += (Entry(path[: n + 1], {}, self._line) for n in range(len(path)))
        else:
            name, equals, value = (part.strip() for part in statement.partition("="))
            path = _path_of(f"{name} = 0") if equals else None
            remedy = _remedy(name, value) if path else 'write KEY = "VALUE"'
            if self._table:
                table = f"{table_said(self._table)} "
            if path and self._table is not None:
                self._add(Entry((*self._table, *path), UNREADABLE, self._line))
        self.is_complete &= path is not None
        why, lines_on, column = _why(err)
        shown = printable(statement.strip().partition("\n")[0])
        shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
        self._fault(column, f"{table}{shown}: is no TOML: {why}; {remedy}", lines_on)


def _is_header(statement: str) -> bool:
    return statement.lstrip(" \t").startswith("[")


def _parsed(statement: str) -> dict[str, object] | Exception:
    """The values that tomllib parses from a statement, or the error that it raises."""
    try:
        return tomllib.loads(statement)
    except (ValueError, RecursionError) as err:
        return err


def _remedy(name: str, value: str) -> str:
    """How to write a key whose value is no TOML."""
    is_short = value.isprintable() and len(value) <= _SHOWN
    if is_short and _BARE.fullmatch(value) and _path_of(f'{name} = "{value}"'):
        return f'write it in quotes, "{value}"'
    quote = value[:1]
    if quote in ('"', "'") and quote not in value[1:]:
        return f"end it with {quote}"
    if value.startswith("[") and value.count("[") > value.count("]"):
        return "close the list with ]"
    return 'write it like KEY = "VALUE"'


def _path_of(statement: str) -> Key | None:
    """The key or table of a statement; None where it has none."""
    content = _parsed(statement)
    paths = [entry.path for entry in entries_of(content)] if isinstance(content, dict) else []
    return paths[-1] if paths else None


def _why(err: Exception) -> tuple[str, int, int]:
    """tomllib's message; how many lines below the statement's first line the mistake is; and its
    column, 0 where tomllib gives none."""
    if isinstance(err, RecursionError):
        return "it is nested too deeply", 0, 0
    said = str(err)
    place = _PLACE.search(said)
    # int() refuses a number of over 4,300 digits, and its message has no place.
    if place is None:
        return printable(said), 0, 0
    lines_on = int(place[1]) - 1 if place[1] else 0
    return printable(said[: place.start()]), lines_on, int(place[2] or 0)

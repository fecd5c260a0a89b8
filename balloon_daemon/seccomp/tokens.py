"""The words of a policy file, each with its place. Pure."""

import re
from collections.abc import Callable, Iterator
from enum import Enum, auto

from balloon_daemon.errors import PolicyProblem
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.policy import Dialect, Place

LINE_LIMIT = 131_072
"""The most characters of a line that is no comment: the message for each mistake shows its whole
line."""

WORDS_LIMIT = 50_000
"""The most words of a statement: far more than fit into a program of 4,096 instructions."""

Report = Callable[[PolicyProblem], None]
Warn = Callable[[str, Place, str], None]
"""Takes a warning's kind, place and text."""

_HIDDEN = (
    "what stands after this comment is read as a statement, as minijail's Python compiler does; "
    "its C compiler takes it for a part of the comment, as the dialect c does here"
)
_HIDDEN_C = (
    "what stands after this comment is a part of it, as for minijail's C compiler; its Python "
    "compiler reads it as a statement, as the dialect python does here"
)


class Kind(Enum):
    """The kind of a word, before the grammar reads it."""

    DIRECTIVE = auto()
    PATH = auto()
    NUMBER = auto()
    NAME = auto()
    ARGUMENT = auto()
    OPERATOR = auto()
    ACTION = auto()
    RETURN = auto()
    SIGN = auto()


ACTIONS = frozenset(
    ("allow", "kill", "kill-process", "kill-thread", "trap", "trace", "log", "user-notify")
)
_WORDS = {"in": Kind.OPERATOR, "return": Kind.RETURN} | dict.fromkeys(ACTIONS, Kind.ACTION)
# "in" and "return" have a pattern of their own in _TOKEN (WORD), because they end before a minus
# sign, which a name may contain. So "return-1" is two words, but "kill-thread" is one.

# The patterns' order matters: a comment takes the rest of the line, and a longer sign comes before
# a shorter one with which it begins. re.ASCII: only ASCII white space separates words. Other white
# space looks like a line's end or like nothing, and no other compiler of this language skips it.
_TOKEN = re.compile(
    r"""
    (?P<skip> \#.* | \s+ | \\$ )
  | (?P<DIRECTIVE> @[a-zA-Z]+ )
  | (?P<PATH> \.?/\S+ )
  | (?P<NUMBER> -?[0-9][0-9a-zA-Z_]* )
  | (?P<ARGUMENT> arg[0-9]+(?![a-zA-Z0-9_@-]) )
  | (?P<WORD> (?:in|return)\b )
  | (?P<NAME> [a-zA-Z_][a-zA-Z_0-9@-]* )
  | (?P<SIGN> \|\| | && | [:;,~(){}\[\]|] | =(?!=) )
  | (?P<OPERATOR> & | == | != | <= | >= | < | > )
    """,
    re.VERBOSE | re.ASCII,
)

# After @include and @frequency everything up to white space is taken as the path, even a bad one.
# The parser then says what is wrong with the path; _TOKEN would only say "'.' is not part of the
# language".
_PATH = re.compile(r"(?P<skip>\#.*|\s+|\\$)|(?P<PATH>\S+)", re.ASCII)

# Matches a line that has a '#' directly behind a word. Lines that begin with '#' (comments) or '@'
# (directives, whose paths may have a '#') do not match.
_GLUED = re.compile(r"\s*[^\s#@][^#]*(?<!\s)#", re.ASCII)

_BYTE_ORDER_MARK = "\ufeff"
_UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")  # UTF-16's byte order marks, as bytes that are no UTF-8


class Token(NamedTuple):
    """One word and its place: the column counts from 1."""

    kind: Kind
    text: str
    file: str
    line: int
    column: int
    source: str

    @property
    def place(self) -> Place:
        """The word's place."""
        return Place(self.file, self.line, self.column, self.source, len(self.text))

    @property
    def place_after(self) -> Place:
        """The place right behind the word, where the next word was expected."""
        column = self.column + len(self.text)
        return Place(self.file, self.line, column, self.source)


def statements(
    file: str,
    text: str,
    report: Report,
    *,
    dialect: Dialect = Dialect.PYTHON,
    warn: Warn = lambda kind, place, message: None,
) -> Iterator[list[Token]]:
    """Cuts a file into statements: one line each, or several that end in a backslash.

    As in minijail's Python compiler, a comment ends with its own line, but a backslash at that
    line's end still joins the next line. In minijail's C compiler such a comment continues on the
    next line, and a carriage return alone ends no line. A statement with an invalid word is
    reported and left out, and the next statement is read.
    """
    tokens: list[Token] = []
    sound = True
    hidden: Place | None = None  # a comment that continues on this line in one compiler only
    lines = _lines(_without_mark(file, text, report), dialect)
    for number, (source, end) in enumerate(lines, 1):
        comment = not tokens and source.lstrip(" \t").startswith("#")
        if hidden is not None and dialect is Dialect.C:
            if source.strip() and not comment:
                warn("comment", hidden, _HIDDEN_C)
        elif len(source) > LINE_LIMIT and not comment:
            place = Place(file, number, LINE_LIMIT + 1, source[:LINE_LIMIT])
            report(place.problem(f"the line is longer than {LINE_LIMIT:,} characters"))
            sound = False
        else:
            place = Place(file, number, 1, source)
            if dialect is Dialect.C and (glued := _GLUED.match(source)):
                message = "minijail's C compiler takes this '#' for a part of the word before it"
                report(place._replace(column=glued.end()).problem(message))
                sound = False
            sound = _words_of(place, tokens, report) and sound
        if hidden is not None and tokens and dialect is Dialect.PYTHON:
            warn("comment", hidden, _HIDDEN)
            hidden = None
        joined = source.endswith("\\")
        if not joined and end != "\r":
            hidden = None
        elif comment and hidden is None:
            hidden = Place(file, number, 1, source[:LINE_LIMIT])
        if comment and "\r" in source and _goes_on(source):
            warn("comment", Place(file, number, 1, source[:LINE_LIMIT]), _HIDDEN_C)
        if joined:
            continue
        if tokens and sound:
            yield tokens
        tokens, sound = [], True
    if tokens and sound:
        # Report a statement that the file's end cuts off: minijail's Python compiler drops such a
        # statement without a message.
        report(tokens[-1].place_after.problem("the file ends inside a continued line"))


def _words_of(line: Place, tokens: list[Token], report: Report) -> bool:
    """Adds a line's words; False after reporting an invalid word, or too many words."""
    file, number, _, source, _ = line
    at = 0
    while at < len(source):
        wants_path = tokens and tokens[-1].text in ("@include", "@frequency")
        match = (_PATH if wants_path else _TOKEN).match(source, at)
        if match is None:
            found = source[at]
            byte = ord(found) - 0xDC00
            shown = f"byte {byte:#x}" if 0x80 <= byte <= 0xFF else repr(found)
            place = Place(file, number, at + 1, source)
            report(place.problem(f"{shown} is not part of the language"))
            return False
        at = match.end()
        name = match.lastgroup
        if name is not None and name != "skip":
            word = match.group()
            kind = _WORDS.get(word) if name in ("NAME", "WORD") else None
            tokens.append(Token(kind or Kind[name], word, file, number, match.start() + 1, source))
            if len(tokens) > WORDS_LIMIT:
                report(tokens[-1].place.problem(f"a statement has at most {WORDS_LIMIT:,} words"))
                del tokens[1:]
                return False
    return True


def _without_mark(file: str, text: str, report: Report) -> str:
    """The text without a byte order mark, which is reported."""
    if text.startswith(_UTF_16):
        report(Place(file, 1, 1, "").problem("the file is UTF-16 or UTF-32: save it as UTF-8"))
        return ""
    if text.startswith(_BYTE_ORDER_MARK):
        message = "the file begins with a byte order mark (U+FEFF): save it without one"
        report(Place(file, 1, 1, text[1:LINE_LIMIT].partition("\n")[0]).problem(message))
    return text.removeprefix(_BYTE_ORDER_MARK)


def _lines(text: str, dialect: Dialect) -> Iterator[tuple[str, str]]:
    """Each line and its end: a carriage return alone is told apart from a line feed."""
    ends = "\n"
    if dialect is Dialect.PYTHON and "\r" in text:
        text, ends = text.replace("\r\n", "\n"), "\r\n"
    if text[-1:] in ends:
        text = text[:-1]  # there is no further line behind the last line's end
    for line in text.split("\n"):
        if "\r" not in line:
            yield line, "\n"
        elif dialect is Dialect.PYTHON:
            *parts, last = line.split("\r")
            yield from ((part, "\r") for part in parts)
            yield last, "\n"
        else:
            # A carriage return behind the backslash is kept: minijail's C compiler does not join
            # the next line then, because the line does not end in the backslash.
            yield line if line.endswith("\\\r") else line.removesuffix("\r"), "\n"


def _goes_on(comment: str) -> bool:
    """Whether a carriage return in a comment is followed by text that is no comment."""
    parts = (part.strip() for part in comment.split("\r")[1:])
    return any(part and not part.startswith("#") for part in parts)

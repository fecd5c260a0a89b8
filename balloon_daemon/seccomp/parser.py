"""Parses minijail's policy language, as one of its two compilers understands it. Pure.

The text becomes a ``ParsedPolicy``: for each system call its filters, in order, ending with an
unconditional one. A mistake does not end the run: its statement is left out, the rest is read,
and one ``PolicyFileError`` carries all that was found, included files' mistakes too.

The grammar stands above each method, in the order of the language::

    file      = { statement }
    statement = '@include' path | '@frequency' path | '@default' action | '@denylist' | rule
    rule      = ( call | '{' call { ',' call } '}' ) ':' filters

docs/policy-files.md explains it to those who write such files. In the C dialect (``c_rules``)
there are ``@include``, one level deep, and rules.

No file may cost more than a moment, however it is made: how much is read, how many mistakes are
told and how much becomes of one statement are all limited here, and so in ``tokens`` and ``bpf``.
"""

import posixpath
from collections.abc import Callable, Iterable

from balloon_daemon.errors import PolicyFileError, PolicyProblem
from balloon_daemon.seccomp.c_rules import CRuleReader
from balloon_daemon.seccomp.constants import Arch
from balloon_daemon.seccomp.policy import (
    ALLOW,
    Action,
    CallRules,
    Dialect,
    Filter,
    ParsedPolicy,
    Place,
    Verdict,
)
from balloon_daemon.seccomp.rules import Rule, RuleReader, did_you_mean
from balloon_daemon.seccomp.tokens import Kind, Token, statements
from balloon_daemon.seccomp.words import StatementError, Words

INCLUDE_DEPTH_LIMIT = 10
"""Files may include files that include files, this deep; minijail's limit."""

C_INCLUDE_DEPTH_LIMIT = 1
"""minijail's C compiler reads what the policy includes, and nothing that this includes."""

TEXT_LIMIT = 2 * 1024 * 1024
"""Characters of a policy with all that it includes, each time that it includes it."""

FILES_LIMIT = 1000
"""Files that a policy includes, one that is included again counted again."""

MISTAKES_LIMIT = 100
"""Mistakes after which no more are looked for."""

FILTERS_LIMIT = 100_000
"""Filters of all calls together: a group of calls gives each of them its own."""

_DIRECTIVES = ("@include", "@frequency", "@default", "@denylist")
_ALL_DIRECTIVES = ", ".join(_DIRECTIVES)

# A default must not let anything through: minijail calls the others permissive.
_DEFAULTS = {
    "kill": Action.KILL_PROCESS,
    "kill-process": Action.KILL_PROCESS,
    "kill-thread": Action.KILL_THREAD,
    "trap": Action.TRAP,
    "user-notify": Action.USER_NOTIF,
}


def parse_policy(
    text: str,
    *,
    path: str,
    arch: Arch,
    read: Callable[[str], str],
    default: Action = Action.KILL_PROCESS,
    dialect: Dialect = Dialect.PYTHON,
    is_another: Callable[[str, str], bool] = lambda name, other: False,
) -> ParsedPolicy:
    """Parses one policy and everything it includes.

    Args:
        text: what stands in the file.
        path: the file's name, for messages; relative includes start at its directory.
        arch: whose calls and constants the names mean.
        read: returns an included file's text, or raises OSError.
        default: what happens to calls that nothing allows, where no @default says otherwise.
        dialect: which of minijail's compilers to follow.
        is_another: whether the second name is a file too, and not the first one: there the two
            compilers read different files. Without it this is not warned of.

    Raises:
        PolicyFileError: with every mistake in the file and its includes, up to MISTAKES_LIMIT.
    """
    parser = _Parser(arch, read, Verdict(default), dialect, is_another)
    try:
        parser.read_policy(path, text)
        policy = parser.result()
    except _TooManyMistakes:
        policy = None
    parser.raise_mistakes()
    assert policy is not None, "too many mistakes, and there are none"
    return policy


def parse_call(text: str, arch: Arch) -> tuple[int, list[int]]:
    """Parses a call as people write it: ``madvise(0, 4096, MADV_REMOVE)``.

    The arguments are values of the policy language; the call may be a number.

    Returns:
        The call's number, and as many arguments as were given.

    Raises:
        PolicyFileError: it cannot be read, or has more than six arguments.
    """
    problems: list[PolicyProblem] = []
    result = None
    line = text.replace("\n", " ").replace("\r", " ")
    for tokens in statements("call", line, problems.append):
        try:
            result = RuleReader(arch, problems.append).call(Words(tokens))
        except StatementError as err:
            problems.append(err.problem)
    if result is None and not problems:
        problems.append(Place("call", 1, 1, text).problem("expected a call"))
    if problems or result is None:
        raise PolicyFileError(problems)
    return result


class _TooManyMistakes(Exception):
    """There is no use in reading on."""


class _Parser:
    """One run over a policy and its includes."""

    def __init__(
        self,
        arch: Arch,
        read: Callable[[str], str],
        default: Verdict,
        dialect: Dialect,
        is_another: Callable[[str, str], bool],
    ) -> None:
        self._arch = arch
        self._read = read
        self._is_another = is_another
        self._default = default
        self._dialect = dialect
        self._denylist = False
        self._open: list[str] = []
        self._files: list[str] = []
        self._text_left = TEXT_LIMIT
        self._rules: list[Rule] = []
        self._frequency: dict[int, int] = {}
        self._problems: list[PolicyProblem] = []
        match dialect:
            case Dialect.PYTHON:
                self._reader = RuleReader(arch, self._report)
            case Dialect.C:
                self._reader = CRuleReader(arch, self._report, default)

    def _report(self, problem: PolicyProblem) -> None:
        self._problems.append(problem)
        if len(self._problems) == MISTAKES_LIMIT:
            message = f"these are {MISTAKES_LIMIT} mistakes; more are not looked for"
            self._problems.append(problem._replace(source="", message=message))
            raise _TooManyMistakes

    def _statements(self, path: str, text: str) -> Iterable[list[Token]]:
        return statements(path, text, self._report, dialect=self._dialect, warn=self._reader.warn)

    def read_policy(self, path: str, text: str) -> None:
        """The policy itself: unlike an included file it must not be empty."""
        self._files.append(path)
        found = list(self._statements(path, text))
        self._text_left -= len(text)
        self._denylist = any(tokens[0].text == "@denylist" for tokens in found)
        self._reader.denylist = self._denylist
        if self._denylist:
            self._default = ALLOW
        if not found and not self._problems:
            place = Place(path, 1, 1, text.partition("\n")[0].rstrip("\r"))
            self._report(place.problem("the file has no statement, so nothing is allowed"))
        self._read_statements(path, found, None)

    def _read_statements(
        self, path: str, found: Iterable[list[Token]], included_at: Place | None
    ) -> None:
        self._open.append(path)
        marked = False
        for tokens in found:
            try:
                words = Words(tokens)
                if tokens[0].kind is Kind.DIRECTIVE:
                    marked |= tokens[0].text == "@denylist"
                    self._directive(path, words)
                else:
                    rule = self._reader.rule(words)
                    self._rules.append(rule)
                words.end()
            except StatementError as err:
                self._report(err.problem)
        if included_at is not None and self._denylist and not marked:
            message = f"{path} lacks @denylist, which the file that includes it has"
            self._report(included_at.problem(message))
        self._open.pop()

    # statement = '@include' path | '@frequency' path | '@default' action | '@denylist'
    def _directive(self, path: str, words: Words) -> None:
        directive = words.take()
        if self._dialect is Dialect.C and directive.text in _DIRECTIVES[1:]:
            if directive.text != "@frequency":
                message = f"minijail's C compiler has no {directive.text}"
                raise StatementError(directive.place, message)
            words.drop()  # it is passed over there, and says nothing about what is allowed
            return
        match directive.text:
            case "@include":
                self._include(path, words)
            case "@frequency":
                self._frequencies(path, words)
            case "@default":
                self._set_default(words)
            case "@denylist":
                if not self._denylist:
                    raise StatementError(
                        directive.place, "@denylist must stand in the policy itself too"
                    )
            case unknown:
                hint = did_you_mean(unknown, _DIRECTIVES) or f"; there are {_ALL_DIRECTIVES}"
                raise StatementError(directive.place, f"unknown directive {unknown}{hint}")

    # '@include' path;  path = '/' … | './' …
    def _include(self, path: str, words: Words) -> None:
        place, name = self._path(path, words, included=True)
        if name in self._open:
            chain = " includes ".join([*self._open[self._open.index(name) :], name])
            raise StatementError(place, f"includes go in a circle: {chain}")
        in_c = self._dialect is Dialect.C
        limit = C_INCLUDE_DEPTH_LIMIT if in_c else INCLUDE_DEPTH_LIMIT
        if len(self._open) > limit:
            by_whom = "; minijail's C compiler reads one level" if in_c else ""
            raise StatementError(place, f"includes are nested more than {limit} deep{by_whom}")
        text = self._text(name, place)
        self._read_statements(name, self._statements(name, text), place)

    # '@frequency' path;  that file = { call ':' number }
    def _frequencies(self, path: str, words: Words) -> None:
        place, name = self._path(path, words, included=False)
        for tokens in self._statements(name, self._text(name, place)):
            try:
                line = Words(tokens)
                calls, count = self._reader.frequency(line)
                line.end()
            except StatementError as err:
                self._report(err.problem)
                continue
            for number in calls.values():
                self._frequency[number] = self._frequency.get(number, 0) + count

    def _path(self, path: str, words: Words, *, included: bool) -> tuple[Place, str]:
        """The next word as a path, relative to the file that it stands in.

        minijail's C compiler opens it as it is written, relative to the working directory.
        """
        token = words.take("a path that starts with / or ./")
        if not token.text.startswith(("/", "./")):
            raise StatementError(
                token.place, f"a path starts with / or ./ and {token.text!r} does not"
            )
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(path), token.text))
        from_here = posixpath.normpath(token.text)
        in_c = self._dialect is Dialect.C
        name, other = (from_here, beside) if in_c else (beside, from_here)
        if name != other and included and self._is_another(name, other):
            compiler = "Python" if in_c else "C"
            message = f"{name} is read, and minijail's {compiler} compiler reads {other} instead"
            self._reader.warn("include", token.place, message)
        return token.place, name

    def _text(self, name: str, place: Place) -> str:
        if len(self._files) > FILES_LIMIT:
            message = f"more than {FILES_LIMIT:,} files are included"
            raise self._too_much(place, message)
        try:
            text = self._read(name)
        except OSError as err:
            message = f"cannot read {name}: {err.strerror or err}"
            raise StatementError(place, message) from err
        self._files.append(name)
        self._text_left -= len(text)
        if self._text_left < 0:
            message = f"with this file the policy is larger than {TEXT_LIMIT:,} characters"
            raise self._too_much(place, message)
        return text

    def _too_much(self, place: Place, message: str) -> Exception:
        """Ends the run: the next file would be too much as well."""
        self._report(place.problem(message))
        return _TooManyMistakes()

    # '@default' ( 'kill' | 'kill-process' | 'kill-thread' | 'trap' | 'user-notify' )
    def _set_default(self, words: Words) -> None:
        token = words.take("an action")
        action = _DEFAULTS.get(token.text)
        if action is None:
            allowed = ", ".join(_DEFAULTS)
            raise StatementError(
                token.place, f"{token.text} cannot be the default; it is one of {allowed}"
            )
        self._default = Verdict(action)

    def raise_mistakes(self) -> None:
        """Raises PolicyFileError if anything at all was wrong."""
        if self._problems:
            order = {name: index for index, name in enumerate(reversed(self._files))}
            last = self._problems.pop() if len(self._problems) > MISTAKES_LIMIT else None
            in_order = sorted(
                self._problems, key=lambda p: (-order.get(p.file, 0), p.line, p.column)
            )
            raise PolicyFileError([*in_order, last] if last is not None else in_order)

    def result(self) -> ParsedPolicy:
        """Puts each call's filters together, in the order of the text.

        Raises:
            PolicyFileError: anything at all was wrong.
        """
        filters: dict[str, list[Filter]] = {}
        left = FILTERS_LIMIT
        for rule in self._rules:
            left -= len(rule.calls) * len(rule.filters)
            if left < 0:
                message = f"the calls have more than {FILTERS_LIMIT:,} filters together"
                raise self._too_much(rule.colon.place, message)
            for name in rule.calls:
                of_call = filters.setdefault(name, [])
                self._append(name, of_call, rule)
        self.raise_mistakes()
        calls = []
        otherwise = Filter(None, self._default, None)
        for name, of_call in filters.items():
            if of_call[-1].clauses is not None:
                of_call.append(otherwise)
            self._warn_of_lost_conditions(name, of_call)
            number = self._arch.calls[name]
            frequency = self._frequency.get(number, 1)
            calls.append(CallRules(name, number, frequency, tuple(of_call)))
        return ParsedPolicy(
            self._arch.abi,
            tuple(calls),
            # minijail lets a @default in a @denylist file rule the conditional calls alone.
            ALLOW if self._denylist else self._default,
            tuple(self._reader.warnings()),
            tuple(dict.fromkeys(self._files)),
            self._denylist,
        )

    def _warn_of_lost_conditions(self, name: str, filters: list[Filter]) -> None:
        refusals = [rule for rule in filters if rule.verdict != ALLOW]
        if filters[-1].verdict == ALLOW and refusals and refusals[0].place is not None:
            self._reader.warn(
                "lost",
                refusals[0].place,
                f"holds here, but minijail's Python compiler drops all conditions before an "
                f"unconditional allow: there, {name} is always allowed",
            )

    def _append(self, name: str, of_call: list[Filter], rule: Rule) -> None:
        if self._dialect is Dialect.C and of_call:
            where = _line_of(of_call[0].place)
            message = f"{name} has a line already at {where}; minijail's C compiler takes one"
            self._report(rule.colon.place.problem(message))
            return
        for new in rule.filters:
            if of_call and of_call[-1].clauses is None:
                where = _line_of(of_call[-1].place)
                message = f"{name} was already decided without a condition at {where}"
                self._report(rule.colon.place.problem(message))
                return
            of_call.append(new)


def _line_of(place: Place | None) -> str:
    return f"{place.file}:{place.line}" if place is not None else "another line"

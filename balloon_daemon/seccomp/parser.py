"""Parses minijail's policy language, as one of its two compilers understands it. Pure.

The text becomes a ``ParsedPolicy``: for each system call its filters, in order, ending with an
unconditional one. A mistake does not stop the parser: the statement is left out, the rest is read,
and one ``PolicyFileError`` lists all mistakes, also those of included files.

The grammar is written above each method, in the order of the language::

    file      = { statement }
    statement = '@include' path | '@frequency' path | '@default' action | '@denylist' | rule
    rule      = ( call | '{' call { ',' call } '}' ) ':' filters

docs/policy-files.md explains it to authors of policy files. The C dialect (``c_rules``) has only
rules and ``@include``, one level deep.

No file may take more than a moment, whatever it holds: limits apply to the text that is read
(``policy_sources``), the mistakes that are reported (``remarks``), and the result of a statement
(here, ``tokens``, ``values``, ``bpf``).
"""

from collections.abc import Callable, Iterable
from typing import assert_never

from balloon_daemon.seccomp.c_rules import CRuleReader
from balloon_daemon.seccomp.constants import Arch
from balloon_daemon.seccomp.nearest_name import did_you_mean
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
from balloon_daemon.seccomp.policy_sources import PolicySources
from balloon_daemon.seccomp.remarks import Mistakes, TooManyMistakesError, Warnings
from balloon_daemon.seccomp.rules import PolicyRule, RuleReader
from balloon_daemon.seccomp.tokens import Kind, Token, statements
from balloon_daemon.seccomp.words import StatementError, Words

FILTERS_LIMIT = 100_000
"""The most filters of all calls together; a group's filters count once for each of its calls."""

_DIRECTIVES = ("@include", "@frequency", "@default", "@denylist")
_ALL_DIRECTIVES = ", ".join(_DIRECTIVES)

# The actions that @default may name. Actions that let a call run are left out, as minijail refuses
# them as permissive.
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
        text: the file's text.
        path: the file's name, for messages; relative includes start at its directory.
        arch: the architecture whose calls and constants are used.
        read: returns an included file's text, or raises OSError.
        default: the answer to calls that no rule allows, unless a @default says otherwise.
        dialect: which of minijail's compilers to follow.
        is_another: whether the second name is a file other than the first: then the two compilers
            read different files, which causes a warning. The default never warns.

    Raises:
        PolicyFileError: with every mistake in the file and its includes, up to MISTAKES_LIMIT.
    """
    parser = _Parser(arch, read, Verdict(default), dialect, is_another)
    try:
        parser.read_policy(path, text)
        policy = parser.result()
    except TooManyMistakesError:
        policy = None
    parser.raise_mistakes()
    assert policy is not None, "too many mistakes, and there are none"
    return policy


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
        self._default = default
        self._dialect = dialect
        self._denylist = False
        self._rules: list[PolicyRule] = []
        self._frequency: dict[int, int] = {}
        self._mistakes = Mistakes()
        self._warnings = Warnings()
        self._sources = PolicySources(read, is_another, dialect, self._mistakes, self._warnings)
        report, warn = self._mistakes.report, self._warnings.add
        match dialect:
            case Dialect.PYTHON:
                self._reader = RuleReader(arch, report, warn)
            case Dialect.C:
                self._reader = CRuleReader(arch, report, warn, default)
            case unreachable:
                assert_never(unreachable)

    def _statements(self, path: str, text: str) -> Iterable[list[Token]]:
        return statements(
            path, text, self._mistakes.report, dialect=self._dialect, warn=self._warnings.add
        )

    def read_policy(self, path: str, text: str) -> None:
        """Reads the policy itself, which unlike an included file must not be empty."""
        self._sources.begin(path, text)
        found = list(self._statements(path, text))
        self._denylist = any(tokens[0].text == "@denylist" for tokens in found)
        self._reader.denylist = self._denylist
        if self._denylist:
            self._default = ALLOW
        if not found and not self._mistakes:
            place = Place(path, 1, 1, text.partition("\n")[0].rstrip("\r"))
            self._mistakes.report(
                place.problem("the file has no statement, so nothing is allowed")
            )
        self._read_statements(path, found, None)

    def _read_statements(
        self, path: str, found: Iterable[list[Token]], included_at: Place | None
    ) -> None:
        self._sources.enter(path)
        marked = False
        for tokens in found:
            try:
                words = Words(tokens)
                if tokens[0].kind is Kind.DIRECTIVE:
                    marked |= tokens[0].text == "@denylist"
                    self._directive(words)
                else:
                    rule = self._reader.rule(words)
                    self._rules.append(rule)
                words.end()
            except StatementError as err:
                self._mistakes.report(err.problem)
        if included_at is not None and self._denylist and not marked:
            message = f"{path} lacks @denylist, which the file that includes it has"
            self._mistakes.report(included_at.problem(message))
        self._sources.leave()

    # Grammar: statement = '@include' path | '@frequency' path | '@default' action | '@denylist'
    def _directive(self, words: Words) -> None:
        directive = words.take()
        if self._dialect is Dialect.C and directive.text in _DIRECTIVES[1:]:
            if directive.text != "@frequency":
                message = f"minijail's C compiler has no {directive.text}"
                raise StatementError(directive.place, message)
            words.drop()  # the C compiler skips @frequency, which changes no call's answer
            return
        match directive.text:
            case "@include":
                self._include(words)
            case "@frequency":
                self._frequencies(words)
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

    # Grammar: '@include' path, where path = '/' … | './' …
    def _include(self, words: Words) -> None:
        place, name, text = self._sources.included(words)
        self._read_statements(name, self._statements(name, text), place)

    # Grammar: '@frequency' path, to a file of { call ':' number }
    def _frequencies(self, words: Words) -> None:
        name, text = self._sources.frequencies(words)
        for tokens in self._statements(name, text):
            try:
                line = Words(tokens)
                calls, count = self._reader.frequency(line)
                line.end()
            except StatementError as err:
                self._mistakes.report(err.problem)
                continue
            for number in calls.values():
                self._frequency[number] = self._frequency.get(number, 0) + count

    # Grammar: '@default' ( 'kill' | 'kill-process' | 'kill-thread' | 'trap' | 'user-notify' )
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
        """Raises PolicyFileError if there was any mistake."""
        self._mistakes.raise_if_any(self._sources.names)

    def result(self) -> ParsedPolicy:
        """Puts each call's filters together, in the order of the text.

        Raises:
            PolicyFileError: there was any mistake.
        """
        filters: dict[str, list[Filter]] = {}
        left = FILTERS_LIMIT
        for rule in self._rules:
            left -= len(rule.calls) * len(rule.filters)
            if left < 0:
                message = f"the calls have more than {FILTERS_LIMIT:,} filters together"
                raise self._mistakes.too_much(rule.colon.place.problem(message))
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
            # A @denylist file allows every call that it does not list. Its @default, as in
            # minijail, is only for a listed call none of whose conditions holds (`otherwise`
            # above).
            ALLOW if self._denylist else self._default,
            tuple(self._warnings.problems()),
            tuple(dict.fromkeys(self._sources.names)),
            self._denylist,
        )

    def _warn_of_lost_conditions(self, name: str, filters: list[Filter]) -> None:
        refusals = [rule for rule in filters if rule.verdict != ALLOW]
        if filters[-1].verdict == ALLOW and refusals and refusals[0].place is not None:
            self._warnings.add(
                "lost",
                refusals[0].place,
                f"holds here, but minijail's Python compiler drops all conditions before an "
                f"unconditional allow: there, {name} is always allowed",
            )

    def _append(self, name: str, of_call: list[Filter], rule: PolicyRule) -> None:
        if self._dialect is Dialect.C and of_call:
            where = _line_of(of_call[0].place)
            message = f"{name} has a line already at {where}; minijail's C compiler takes one"
            self._mistakes.report(rule.colon.place.problem(message))
            return
        for new in rule.filters:
            if of_call and of_call[-1].clauses is None:
                where = _line_of(of_call[-1].place)
                message = f"{name} was already decided without a condition at {where}"
                self._mistakes.report(rule.colon.place.problem(message))
                return
            of_call.append(new)


def _line_of(place: Place | None) -> str:
    return f"{place.file}:{place.line}" if place is not None else "another line"

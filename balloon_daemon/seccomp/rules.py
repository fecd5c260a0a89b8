"""Reads one rule of a policy file: calls, a colon, filters. Pure."""

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.constants import (
    ARCH_NAMES,
    KNOWN_ELSEWHERE,
    Arch,
    canonical_arch,
)
from balloon_daemon.seccomp.nearest_name import did_you_mean
from balloon_daemon.seccomp.policy import (
    ALLOW,
    MAX_ARGUMENTS,
    Action,
    Atom,
    Filter,
    Operator,
    Verdict,
)
from balloon_daemon.seccomp.tokens import ACTIONS, Kind, Report, Token, Warn
from balloon_daemon.seccomp.values import ValueReader
from balloon_daemon.seccomp.words import StatementError, Words

_ACTIONS = {
    "allow": Action.ALLOW,
    "kill": Action.KILL_PROCESS,
    "kill-process": Action.KILL_PROCESS,
    "kill-thread": Action.KILL_THREAD,
    "trap": Action.TRAP,
    "trace": Action.TRACE,
    "log": Action.LOG,
    "user-notify": Action.USER_NOTIF,
}
MAX_ERRNO = 4095
"""The kernel turns every larger errno of a filter into this one. linux/err.h"""

_RETURN_WARNING = (
    "where the expression holds, the call fails with this error, and where it does not the next "
    "filter or the default decides; minijail's C compiler reads it the other way round, as the "
    "dialect c does here: the call is allowed where it holds, and fails with this error where it "
    "does not"
)


class PolicyRule(NamedTuple):
    """The meaning of a statement: these calls, by name, get these filters."""

    calls: tuple[str, ...]
    filters: tuple[Filter, ...]
    colon: Token


class RuleReader:
    """Reads rules for one architecture; reports unknown names and goes on."""

    def __init__(self, arch: Arch, report: Report, warn: Warn) -> None:
        self.denylist = False
        self._arch = arch
        self._report = report
        self._warn = warn
        self._values = ValueReader(arch, report)

    # Grammar: rule = ( call | '{' call { ',' call } '}' ) ':' filters
    def rule(self, words: Words) -> PolicyRule:
        """Reads a whole rule.

        Raises:
            StatementError: the grammar is violated; unknown names are only reported.
        """
        calls = self._calls(words)
        colon = words.expect(":")
        return PolicyRule(tuple(calls), self._filters(words), colon)

    def _calls(self, words: Words) -> list[str]:
        opened = words.take_if("{")
        calls = self._call(words)
        if opened is not None:
            while words.take_if(","):
                calls += self._call(words)
            words.expect("}", opened=opened)
        return calls

    # Grammar: line of a frequency file = call ':' number
    def frequency(self, words: Words) -> tuple[dict[str, int], int]:
        """Reads one line of a frequency file: {call name: number}, and how often it is called."""
        calls = self._call(words)
        words.expect(":")
        token = words.take("a number")
        count = self._values.number(token) if token.kind is Kind.NUMBER else None
        if count is None or token.text.startswith("-"):
            raise StatementError(token.place, f"expected a count, found {token.text!r}")
        return {name: self._arch.calls[name] for name in calls}, count

    # Grammar: call = name [ '[' key '=' name { ',' name } { ';' … } ']' ]
    def _call(self, words: Words) -> list[str]:
        """The call, or nothing if it is unknown or meant for another architecture."""
        token = words.take("a system call")
        # A call may have the name of an action or of another word of the language: "kill" is also
        # a system call.
        if token.kind is not Kind.NAME and token.text not in ("kill", "in", "return", *ACTIONS):
            raise StatementError(token.place, f"expected a system call, found {token.text!r}")
        opened = words.take_if("[")
        if opened is not None and not self._is_for_us(words, opened):
            return []
        if token.text in self._arch.calls:
            return [token.text]
        if "@" in token.text:
            message = f"unknown group of calls {token.text}; there are no groups"
        else:
            message = f"unknown system call {token.text} on {self._arch.name}"
            message += did_you_mean(token.text, self._arch.calls)
        self._report(token.place.problem(message))
        return []

    def _is_for_us(self, words: Words, opened: Token) -> bool:
        keys: dict[str, list[Token]] = {}
        while True:
            key = words.take("a key")
            if key.kind is not Kind.NAME:
                raise StatementError(key.place, f"expected a key, found {key.text!r}")
            if key.text in keys:
                raise StatementError(key.place, f"{key.text} is given twice")
            words.expect("=")
            values = keys.setdefault(key.text, [])
            while True:
                value = words.take("a value")
                if value.kind is not Kind.NAME:
                    raise StatementError(value.place, f"expected a name, found {value.text!r}")
                values.append(value)
                if not words.take_if(","):
                    break
            if key.text != "arch":
                self._warn("key", key.place, f"{key.text} means nothing here; only arch does")
            if not words.take_if(";"):
                break
        words.expect("]", opened=opened)
        for value in keys.get("arch", []):
            if canonical_arch(value.text) not in (*ARCH_NAMES, *KNOWN_ELSEWHERE):
                near = did_you_mean(value.text, ARCH_NAMES)
                self._warn("arch", value.place, f"no architecture is called {value.text}{near}")
        names = [canonical_arch(value.text) for value in keys.get("arch", [])]
        return "arch" not in keys or self._arch.name in names

    # Grammar: filters = filter | '{' filter { ',' filter } '}'
    def _filters(self, words: Words) -> tuple[Filter, ...]:
        opened = words.take_if("{")
        if opened is None:
            return (self._filter(words),)
        filters = [self._filter(words)]
        while words.take_if(","):
            filters.append(self._filter(words))
        words.expect("}", opened=opened)
        return tuple(filters)

    # Grammar: filter = action | clause { '||' clause } [ ';' action ]
    # clause = atom { '&&' atom }
    def _filter(self, words: Words) -> Filter:
        first = words.peek()
        if first is None or first.kind is not Kind.ARGUMENT:
            verdict = self._action(words)
            return Filter(None, verdict, first.place if first is not None else None)
        clauses = self._clauses(words)
        verdict = ALLOW
        if words.take_if(";"):
            action = words.peek()
            verdict = self._action(words)
            if verdict.action is Action.ERRNO and action is not None:
                self._warn("return", action.place, _RETURN_WARNING)
        return Filter(clauses, verdict, first.place)

    def _clauses(self, words: Words) -> tuple[tuple[Atom, ...], ...]:
        clauses = []
        while True:
            atoms = [self._atom(words)]
            while words.take_if("&&"):
                atoms.append(self._atom(words))
            clauses.append(tuple(atoms))
            if not words.take_if("||"):
                return tuple(clauses)

    # Grammar: action = 'allow' | '1' | 'kill' | 'kill-process' | 'kill-thread' | 'trap' | 'trace'
    #                 | 'log' | 'user-notify' | 'return' ( name | number )
    def _action(self, words: Words) -> Verdict:
        token = words.take("an action or a condition")
        if self.denylist and token.kind is not Kind.RETURN:
            raise StatementError(
                token.place, f"expected return, found {token.text!r}: this file is a @denylist"
            )
        if token.kind is Kind.ACTION:
            return Verdict(_ACTIONS[token.text])
        if token.kind is Kind.NUMBER and self._values.number(token) == 1:
            return ALLOW
        if token.kind is Kind.RETURN:
            number = words.take("an error's name or number")
            errno = self._values.constant(number)
            self._warn_of_errno(errno, number)
            return Verdict(Action.ERRNO, errno & 0xFFFF)
        if token.kind is Kind.NUMBER:
            raise StatementError(token.place, f"{token.text} is no action; 1 means allow")
        message = f"expected an action or a condition, found {token.text!r}"
        raise StatementError(token.place, message + did_you_mean(token.text, ACTIONS))

    def _warn_of_errno(self, errno: int, token: Token) -> None:
        if errno > MAX_ERRNO:
            message = f"{token.text} is no error number: they end at {MAX_ERRNO}"
            self._warn("errno", token.place, message)

    # Grammar: atom = argument operator value
    def _atom(self, words: Words) -> Atom:
        argument = words.take("an argument, arg0 to arg5")
        if argument.kind is not Kind.ARGUMENT:
            raise StatementError(
                argument.place, f"expected an argument, arg0 to arg5, found {argument.text!r}"
            )
        number = argument.text[3:].lstrip("0") or "0"
        index = int(number) if len(number) == 1 else MAX_ARGUMENTS
        if index >= MAX_ARGUMENTS:
            message = f"{argument.text} does not exist: system calls have arg0 to arg5"
            self._report(argument.place.problem(message))
        operator = words.take("an operator")
        if operator.kind is not Kind.OPERATOR:
            hint = "; did you mean '=='?" if operator.text == "=" else ""
            raise StatementError(
                operator.place, f"expected an operator, found {operator.text!r}{hint}"
            )
        mark = words.mark()
        value = self._values.value(words)
        return Atom(index, Operator(operator.text), value, words.text_since(mark))

"""Reads one rule as minijail's C compiler does (``minijail0 -S``). Pure.

The C compiler knows a part of the language only, and reads some of it differently: a line is one
call and either ``1``, ``return ERROR`` or ``CONDITION [; return ERROR]``. A call whose arguments
meet the condition is allowed; any other fails with the error, or gets the default. Text that the C
compiler refuses is refused here, and so is text that it silently ignores, so that a line never
means something else here. Spacing is free.

Source: minijail, syscall_filter.c and util.c; all of it was tried with the minijail0 of 2026.
"""

from balloon_daemon.seccomp.constants import Arch
from balloon_daemon.seccomp.policy import ALLOW, Action, Filter, Verdict
from balloon_daemon.seccomp.rules import RuleReader
from balloon_daemon.seccomp.tokens import Kind, Report, Token, Warn
from balloon_daemon.seccomp.words import StatementError, Words

_RETURN_WARNING = (
    "where the expression holds, the call is allowed, and where it does not it fails with this "
    "error; minijail's Python compiler reads it the other way round, as the dialect python does "
    "here: the call fails with this error where it holds, and the next filter or the default "
    "decides where it does not"
)


class CRuleReader(RuleReader):
    """Reads rules in the C dialect."""

    def __init__(self, arch: Arch, report: Report, warn: Warn, default: Verdict) -> None:
        super().__init__(arch, report, warn)
        self._default = default

    # Grammar: call = name
    def _calls(self, words: Words) -> list[str]:
        self._refuse(words, "{", "groups of calls: a line is for one call")
        return self._call(words)

    def _is_for_us(self, words: Words, opened: Token) -> bool:
        message = "minijail's C compiler has no […] behind a call"
        raise StatementError(opened.place, message)

    # Grammar: filters = '1' | return | clause { '||' clause } [ ';' [ return ] ]
    def _filters(self, words: Words) -> tuple[Filter, ...]:
        self._refuse(words, "{", "lists of filters: a line has one condition")
        first = words.take("1, return or a condition")
        place = first.place
        if first.kind is Kind.RETURN:
            return (Filter(None, self._error(words, first), place),)
        if first.kind is Kind.NUMBER and first.text == "1":
            return (Filter(None, ALLOW, place),)
        words.put_back()
        if first.kind is not Kind.ARGUMENT:
            message = f"minijail's C compiler takes 1, return or a condition, not {first.text!r}"
            raise StatementError(place, message)
        allowed = Filter(self._clauses(words), ALLOW, place)
        if not words.take_if(";") or words.peek() is None:
            return (allowed,)
        action = words.take("return")
        if action.kind is not Kind.RETURN:
            message = f"minijail's C compiler takes return after ';', not {action.text!r}"
            raise StatementError(action.place, message)
        refused = self._error(words, action)
        if refused.action is Action.ERRNO:
            self._warn("return", action.place, _RETURN_WARNING)
        return (allowed, Filter(None, refused, action.place))

    # Grammar: return = 'return' [ value ]
    def _error(self, words: Words, action: Token) -> Verdict:
        """The verdict behind ``return``; without a value the default."""
        first = words.peek()
        if first is None:
            return self._default
        behind = action.source[action.place_after.column - 1 :]
        if first.line == action.line and not behind.startswith(" "):
            message = "minijail's C compiler sees an error only after return and a space"
            raise StatementError(first.place, message)
        errno = self._values.value(words)
        if errno & 0xFFFFFFFF == 0xFFFFFFFF:
            raise StatementError(first.place, "minijail's C compiler takes no error −1")
        self._warn_of_errno(errno, first)
        return Verdict(Action.ERRNO, errno & 0xFFFF)

    def _refuse(self, words: Words, sign: str, what: str) -> None:
        found = words.peek()
        if found is not None and found.text == sign:
            raise StatementError(found.place, f"minijail's C compiler has no {what}")

"""Parses a system call that a policy is to judge."""

from balloon_daemon.errors import PolicyFileError, PolicyProblem
from balloon_daemon.seccomp.constants import Arch
from balloon_daemon.seccomp.nearest_name import did_you_mean
from balloon_daemon.seccomp.policy import MAX_ARGUMENTS, Place
from balloon_daemon.seccomp.tokens import Kind, statements
from balloon_daemon.seccomp.values import ValueReader
from balloon_daemon.seccomp.words import StatementError, Words


def parse_call(text: str, arch: Arch) -> tuple[int, list[int]]:
    """Parses a call as people write it: ``madvise(0, 4096, MADV_REMOVE)``.

    The arguments are values of the policy language; the call may be a number.

    Returns:
        The call's number, and as many arguments as were given.

    Raises:
        PolicyFileError: the text is no call, or the call has more than six arguments.
    """
    problems: list[PolicyProblem] = []
    result = None
    line = text.replace("\n", " ").replace("\r", " ")
    for tokens in statements("call", line, problems.append):
        try:
            result = _call(Words(tokens), arch, ValueReader(arch, problems.append))
        except StatementError as err:
            problems.append(err.problem)
    if result is None and not problems:
        problems.append(Place("call", 1, 1, text).problem("expected a call"))
    if problems or result is None:
        raise PolicyFileError(problems)
    return result


# Grammar: a call to be judged = ( name | number ) [ '(' [ value { ',' value } ] ')' ]
def _call(words: Words, arch: Arch, values: ValueReader) -> tuple[int, list[int]]:
    token = words.take("a system call")
    if token.kind is Kind.NUMBER:
        number = values.number(token)
        if not 0 <= number < 2**32:
            raise StatementError(token.place, "a call's number has 32 bits")
    else:
        number = arch.calls.get(token.text, -1)
        if number < 0:
            message = f"unknown system call {token.text} on {arch.name}"
            near = did_you_mean(token.text, arch.calls)
            raise StatementError(token.place, message + near)
    arguments: list[int] = []
    opened = words.take_if("(")
    if opened is not None and not words.take_if(")"):
        arguments.append(values.value(words))
        while words.take_if(","):
            arguments.append(values.value(words))
        words.expect(")", opened=opened)
    words.end()
    if len(arguments) > MAX_ARGUMENTS:
        raise StatementError(token.place, f"a call has at most {MAX_ARGUMENTS} arguments")
    return number, arguments

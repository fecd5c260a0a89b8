"""Describes an exception in text, inside the jail.

The standard library's ``traceback`` imports modules for some exceptions and opens source files:
the seccomp filter would kill the device for either, and the reason would be lost.
"""

from collections.abc import Iterator
from types import TracebackType

MAX_CALLS = 8
"""Only the innermost calls are listed: the controller reads no more characters than these take."""

MAX_CAUSES = 4


def describe_error(err: BaseException) -> str:
    """Describes an exception and its calls like a traceback, without source lines.

    The last line also has, in brackets, the exceptions that caused this one: so the last line
    alone tells the whole cause.
    """
    calls = list(_calls(err.__traceback__))
    skipped = [f"  {len(calls) - MAX_CALLS} calls more"] if len(calls) > MAX_CALLS else []
    lines = ["Traceback (most recent call last):", *skipped, *calls[-MAX_CALLS:]]
    return "\n".join([*lines, _what(err)])


def _calls(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        code = trace.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_qualname}'
        trace = trace.tb_next


def _what(err: BaseException) -> str:
    words: list[str] = []
    cause: BaseException | None = err
    while cause is not None and len(words) <= MAX_CAUSES:
        text = " ".join(str(cause).split())
        words.append(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    first, *causes = words
    return f"{first} (from {', from '.join(causes)})" if causes else first

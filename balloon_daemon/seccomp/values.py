"""Reads the values of the policy language: names, numbers and operators. Pure."""

from collections.abc import Sequence

from balloon_daemon.seccomp.constants import Arch
from balloon_daemon.seccomp.nearest_name import did_you_mean
from balloon_daemon.seccomp.policy import MAX_U64
from balloon_daemon.seccomp.tokens import Kind, Report, Token
from balloon_daemon.seccomp.words import StatementError, Words

NESTING_LIMIT = 64
"""How deep parentheses may be nested: each level is a nested call of the reader."""

DIGITS_LIMIT = 100
"""The longest number that is converted: 64 bits have 20 decimal digits."""


class ValueReader:
    """Reads values for one architecture.

    Args:
        arch: the architecture whose constants are used.
        report: called for unknown names and for numbers over 64 bits, which are read as 0.
    """

    def __init__(self, arch: Arch, report: Report) -> None:
        self._arch = arch
        self._report = report
        self._constants: dict[str, int | None] = {}  # names already looked up
        self._names: Sequence[str] = ()

    # Grammar: value = term { '|' term }
    # term = [ '~' ] ( '(' value ')' | name | number )
    def value(self, words: Words, depth: int = 0) -> int:
        """Reads a value, as an unsigned 64-bit number.

        Raises:
            StatementError: the grammar is violated.
        """
        value = self._term(words, depth)
        while words.take_if("|"):
            value |= self._term(words, depth)
        return value

    def _term(self, words: Words, depth: int) -> int:
        invert = words.take_if("~") is not None
        opened = words.take_if("(")
        if opened is None:
            value = self.constant(words.take("a value"))
        elif depth == NESTING_LIMIT:
            message = f"parentheses are nested more than {NESTING_LIMIT} deep"
            raise StatementError(opened.place, message)
        else:
            value = self.value(words, depth + 1)
            words.expect(")", opened=opened)
        return value ^ MAX_U64 if invert else value

    def constant(self, token: Token) -> int:
        """A name's or number's value, as an unsigned 64-bit number; 0 after reporting a mistake.

        Raises:
            StatementError: the word is neither.
        """
        if token.kind is Kind.NUMBER:
            value = self.number(token)
            if not -(2**63) <= value <= MAX_U64:
                self._report(token.place.problem(f"{token.text} does not fit into 64 bits"))
            return value & MAX_U64
        if token.kind is not Kind.NAME:
            raise StatementError(token.place, f"expected a value, found {token.text!r}")
        if token.text not in self._constants:
            self._constants[token.text] = self._arch.constant(token.text)
        constant = self._constants[token.text]
        if constant is None:
            message = f"unknown constant {token.text}"
            self._names = self._names or self._arch.constant_names()
            message += did_you_mean(token.text, self._names)
            self._report(token.place.problem(message))
            return 0
        return constant

    def number(self, token: Token) -> int:
        """A decimal, hexadecimal (0x) or octal (0, as in C, or 0o) number.

        Raises:
            StatementError: the word is none of these, or too long.
        """
        digits = token.text.lstrip("-").lower()
        if len(digits) > DIGITS_LIMIT:
            message = f"a number of more than {DIGITS_LIMIT} digits does not fit into 64 bits"
            raise StatementError(token.place, message)
        try:
            if digits.startswith("0") and digits.isdigit():
                value = int(digits, 8)
            elif "_" in digits or digits.startswith("0b"):
                raise ValueError  # Python's syntax, but not the language's
            else:
                value = int(digits, 0)
        except ValueError:
            message = f"{token.text} is not a decimal, octal or hexadecimal number"
            raise StatementError(token.place, message) from None
        return -value if token.text.startswith("-") else value

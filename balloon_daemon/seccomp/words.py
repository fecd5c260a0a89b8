"""The words of one statement, in the way that a grammar reads them. Pure."""

from balloon_daemon.seccomp.policy import Place
from balloon_daemon.seccomp.tokens import Token


class StatementError(Exception):
    """This statement cannot be read to its end; the next one can."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.problem = place.problem(message)


class Words:
    """The words of one statement, taken one by one."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._next = 0

    def peek(self) -> Token | None:
        """The next word; None at the end of the statement."""
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def take(self, wanted: str = "more") -> Token:
        """The next word. Args: ``wanted``, the error's text for a word that is missing."""
        token = self.peek()
        if token is None:
            raise StatementError(self._tokens[-1].place_after, f"expected {wanted} here")
        self._next += 1
        return token

    def put_back(self) -> None:
        """Undoes the last ``take``."""
        self._next -= 1

    def drop(self) -> None:
        """Skips all remaining words."""
        self._next = len(self._tokens)

    def mark(self) -> int:
        """The present position, for ``text_since``."""
        return self._next

    def text_since(self, mark: int) -> str:
        """The words taken since the mark, without their spaces."""
        return "".join(token.text for token in self._tokens[mark : self._next])

    def take_if(self, text: str) -> Token | None:
        """Takes the next word if it is ``text``, and returns it; None: it is another word."""
        token = self.peek()
        if token is None or token.text != text:
            return None
        self._next += 1
        return token

    def expect(self, text: str, *, opened: Token | None = None) -> Token:
        """Takes the next word, which must be this text. Args: ``opened``, the bracket that this
        text closes, for the error."""
        token = self.take_if(text)
        if token is not None:
            return token
        if opened is not None:
            raise StatementError(opened.place, f"{opened.text!r} is never closed by {text!r}")
        raise self.unexpected(f"{text!r}")

    def unexpected(self, wanted: str) -> StatementError:
        """The error for finding the next word in place of ``wanted``."""
        token = self.take(wanted)
        return StatementError(token.place, f"expected {wanted}, found {token.text!r}")

    def end(self) -> None:
        """Raises StatementError if words are left over."""
        token = self.peek()
        if token is not None:
            raise StatementError(
                token.place, f"the statement is complete before {token.text!r}; nothing may follow"
            )

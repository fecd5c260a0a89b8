"""The files of a policy: which ones are read, how deeply nested, and how much of them. Pure."""

import posixpath
from collections.abc import Callable

from balloon_daemon.seccomp.policy import Dialect, Place
from balloon_daemon.seccomp.remarks import Mistakes, Warnings
from balloon_daemon.seccomp.words import StatementError, Words

INCLUDE_DEPTH_LIMIT = 10
"""How deep includes may be nested; minijail's limit."""

C_INCLUDE_DEPTH_LIMIT = 1
"""minijail's C compiler reads the files that a policy includes, but not those that they
include."""

TEXT_LIMIT = 2 * 1024 * 1024
"""Characters of a policy with all its includes; a file included twice counts twice."""

FILES_LIMIT = 1000
"""Files that a policy may include; a file included twice counts twice."""


class PolicySources:
    """The files of one run over a policy.

    Args:
        read: returns an included file's text, or raises OSError.
        is_another: whether the second name is a file other than the first.
        dialect: which of minijail's compilers to follow.
    """

    def __init__(
        self,
        read: Callable[[str], str],
        is_another: Callable[[str, str], bool],
        dialect: Dialect,
        mistakes: Mistakes,
        warnings: Warnings,
    ) -> None:
        self.names: list[str] = []
        """Every file in the order of reading, as often as it was read."""
        self._open: list[str] = []
        self._text_left = TEXT_LIMIT
        self._read = read
        self._is_another = is_another
        self._in_c = dialect is Dialect.C
        self._mistakes = mistakes
        self._warnings = warnings

    def begin(self, name: str, text: str) -> None:
        """Notes the policy itself, whose text the caller has read."""
        self.names.append(name)
        self._text_left -= len(text)

    def enter(self, name: str) -> None:
        """Notes that the following statements are of this file."""
        self._open.append(name)

    def leave(self) -> None:
        """Notes the end of the file entered last."""
        self._open.pop()

    def included(self, words: Words) -> tuple[Place, str, str]:
        """Reads the file that the next word names: the word's place, the file's name and text.

        Raises:
            StatementError: the word is no path, the file includes itself, the nesting is too deep,
                or the file cannot be read.
            TooManyMistakesError: this file makes the policy too large.
        """
        place, name = self._path(words, included=True)
        if name in self._open:
            chain = " includes ".join([*self._open[self._open.index(name) :], name])
            raise StatementError(place, f"includes go in a circle: {chain}")
        limit = C_INCLUDE_DEPTH_LIMIT if self._in_c else INCLUDE_DEPTH_LIMIT
        if len(self._open) > limit:
            by_whom = "; minijail's C compiler reads one level" if self._in_c else ""
            raise StatementError(place, f"includes are nested more than {limit} deep{by_whom}")
        return place, name, self._text(name, place)

    def frequencies(self, words: Words) -> tuple[str, str]:
        """Reads the frequency file that the next word names: its name and text.

        Raises:
            StatementError: the word is no path, or the file cannot be read.
            TooManyMistakesError: this file makes the policy too large.
        """
        place, name = self._path(words, included=False)
        return name, self._text(name, place)

    def _path(self, words: Words, *, included: bool) -> tuple[Place, str]:
        """The next word as a path, relative to the file in which it stands.

        In the C dialect the path is relative to the working directory, as for minijail's C
        compiler.
        """
        token = words.take("a path that starts with / or ./")
        if not token.text.startswith(("/", "./")):
            raise StatementError(
                token.place, f"a path starts with / or ./ and {token.text!r} does not"
            )
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(self._open[-1]), token.text))
        from_here = posixpath.normpath(token.text)
        name, other = (from_here, beside) if self._in_c else (beside, from_here)
        if name != other and included and self._is_another(name, other):
            compiler = "Python" if self._in_c else "C"
            message = f"{name} is read, and minijail's {compiler} compiler reads {other} instead"
            self._warnings.add("include", token.place, message)
        return token.place, name

    def _text(self, name: str, place: Place) -> str:
        if len(self.names) > FILES_LIMIT:
            message = f"more than {FILES_LIMIT:,} files are included"
            raise self._mistakes.too_much(place.problem(message))
        try:
            text = self._read(name)
        except OSError as err:
            message = f"cannot read {name}: {err.strerror or err}"
            raise StatementError(place, message) from err
        self.names.append(name)
        self._text_left -= len(text)
        if self._text_left < 0:
            message = f"with this file the policy is larger than {TEXT_LIMIT:,} characters"
            raise self._mistakes.too_much(place.problem(message))
        return text

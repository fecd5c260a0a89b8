"""The files that a policy is made of: which are read, how deep, and how much of them. Pure."""

import posixpath
from collections.abc import Callable

from balloon_daemon.seccomp.policy import Dialect, Place
from balloon_daemon.seccomp.remarks import Mistakes, Warnings
from balloon_daemon.seccomp.words import StatementError, Words

INCLUDE_DEPTH_LIMIT = 10
"""Files may include files that include files, this deep; minijail's limit."""

C_INCLUDE_DEPTH_LIMIT = 1
"""minijail's C compiler reads what the policy includes, and nothing that this includes."""

TEXT_LIMIT = 2 * 1024 * 1024
"""Characters of a policy with all that it includes, each time that it includes it."""

FILES_LIMIT = 1000
"""Files that a policy includes, one that is included again counted again."""


class PolicySources:
    """The files of one run over a policy.

    Args:
        read: returns an included file's text, or raises OSError.
        is_another: whether the second name is a file too, and not the first one.
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
        """Every file, as often as it was read, in that order."""
        self._open: list[str] = []
        self._text_left = TEXT_LIMIT
        self._read = read
        self._is_another = is_another
        self._in_c = dialect is Dialect.C
        self._mistakes = mistakes
        self._warnings = warnings

    def begin(self, name: str, text: str) -> None:
        """The policy itself, whose text the caller has."""
        self.names.append(name)
        self._text_left -= len(text)

    def enter(self, name: str) -> None:
        """The statements of this file are read from here on."""
        self._open.append(name)

    def leave(self) -> None:
        """All statements of the file that was entered last are read."""
        self._open.pop()

    def included(self, words: Words) -> tuple[Place, str, str]:
        """The file that the next word includes: the word's place, the file's name and text.

        Raises:
            StatementError: no path, a circle, too deep, or the file cannot be read.
            TooManyMistakesError: with this file the policy is too large.
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
        """The frequency file that the next word names: its name and text.

        Raises:
            StatementError: no path, or the file cannot be read.
            TooManyMistakesError: with this file the policy is too large.
        """
        place, name = self._path(words, included=False)
        return name, self._text(name, place)

    def _path(self, words: Words, *, included: bool) -> tuple[Place, str]:
        """The next word as a path, relative to the file that it stands in.

        minijail's C compiler opens it as it is written, relative to the working directory.
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

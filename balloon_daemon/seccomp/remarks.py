"""Remarks on a policy: its mistakes, and constructs that may surprise, collected in one run.
Pure."""

from collections.abc import Iterable, Sequence

from balloon_daemon.errors import PolicyFileError, PolicyProblem
from balloon_daemon.seccomp.policy import Place

MISTAKES_LIMIT = 100
"""After so many mistakes the parser stops."""

_PLACES_TOLD = 5


class TooManyMistakesError(Exception):
    """A policy has so many mistakes, or is so large, that the parser stops."""


class Mistakes:
    """All mistakes in a policy and its includes."""

    def __init__(self) -> None:
        self._problems: list[PolicyProblem] = []

    def __bool__(self) -> bool:
        """Whether there was a mistake so far."""
        return bool(self._problems)

    def report(self, problem: PolicyProblem) -> None:
        """Notes a mistake.

        Raises:
            TooManyMistakesError: MISTAKES_LIMIT is reached: no further mistake is looked for.
        """
        self._problems.append(problem)
        if len(self._problems) == MISTAKES_LIMIT:
            message = f"these are {MISTAKES_LIMIT} mistakes; more are not looked for"
            self._problems.append(problem._replace(source="", message=message))
            raise TooManyMistakesError

    def too_much(self, problem: PolicyProblem) -> TooManyMistakesError:
        """Notes that a limit of the whole run was exceeded; returns the error that ends it."""
        self.report(problem)
        return TooManyMistakesError()

    def raise_if_any(self, files: Sequence[str]) -> None:
        """Raises PolicyFileError if there was any mistake.

        Args:
            files: the names of all files; mistakes are listed in the order in which the files were
                first read.
        """
        if self._problems:
            order = {name: index for index, name in enumerate(reversed(files))}
            last = self._problems.pop() if len(self._problems) > MISTAKES_LIMIT else None
            in_order = sorted(
                self._problems, key=lambda p: (-order.get(p.file, 0), p.line, p.column)
            )
            raise PolicyFileError([*in_order, last] if last is not None else in_order)


class Warnings:
    """The warnings about the rules read so far: each kind once, with all its places."""

    def __init__(self) -> None:
        self._places: dict[str, list[tuple[Place, str]]] = {}

    def add(self, kind: str, place: Place, message: str) -> None:
        """Notes a warning. The first warning's text stands for its kind; of later ones of that
        kind only the places are shown."""
        self._places.setdefault(kind, []).append((place, message))

    def problems(self) -> Iterable[PolicyProblem]:
        """One problem for each kind."""
        for (place, message), *others in self._places.values():
            yield place.problem(message + _also_at(place, [other for other, _ in others]))


def _also_at(first: Place, others: Sequence[Place]) -> str:
    """Further places, as the end of a message."""
    told = [
        f"line {place.line}" if place.file == first.file else f"{place.file}:{place.line}"
        for place in others[:_PLACES_TOLD]
    ]
    if len(others) > len(told):
        told.append(f"{len(others) - len(told):,} places more")
    return f"; also at {', '.join(told)}" if told else ""

"""Finds the known name that a misspelt one may have meant. Pure."""

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name, as the end of a message; nothing if none is near."""
    import difflib  # imported here: needed only after a mistake, and the daemon starts without it

    # Compare the name only with constants of the same first letter and of nearly the same length,
    # not with all fifteen thousand: typing errors seldom change the first letter, or the length by
    # much.
    by_folded = {
        candidate.lower(): candidate
        for candidate in known
        if candidate[0].lower() == name[0].lower() and abs(len(candidate) - len(name)) <= 3
    }
    near = difflib.get_close_matches(name.lower(), by_folded, 1, 0.7)
    return f"; did you mean {by_folded[near[0]]}?" if near else ""

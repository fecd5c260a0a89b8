"""Makes settings of the configuration file and its drop-ins, or finds all of their mistakes.

The reference is ``docs/config.md``. Reading is strict: an unknown key is a mistake, not a hint for
a later version. A mistake is one line that names file, line, table, key and value, and the remedy;
all mistakes are found in one go. A key that two files set has the value of the later file.

Each text is parsed whole by tomllib, which is fast, tells no lines and stops at the first mistake.
Only after a mistake, and where lines are asked for, it is read once more by ``statements``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from balloon_daemon.config.entries import Key, Origin, Where, entries_of
from balloon_daemon.config.files import ConfigText, read_texts
from balloon_daemon.config.gathered import DISCOVER, HOST, VM, Gathered
from balloon_daemon.config.model import FromFiles
from balloon_daemon.errors import ConfigFileError, printable

HOST_KEYS, VM_KEYS, DISCOVER_KEYS = tuple(HOST), tuple(VM), tuple(DISCOVER)


def read_config(
    path: Path, *, optional: bool = False, with_origins: bool = False
) -> FromFiles | None:
    """The settings in a configuration file and its drop-ins.

    Args:
        path: the file.
        optional: True: it may be absent.
        with_origins: True: also finds where each key is set.

    Returns:
        None: there is neither the file nor a drop-in.

    Raises:
        ConfigFileError: a file cannot be read or trusted, or has mistakes.
    """
    unread: list[str] = []
    texts = read_texts(path, unread, optional=optional)
    if not texts and not unread:
        return None
    return parse_texts(texts, unread, with_origins=with_origins)


def parse_texts(
    texts: Sequence[ConfigText], unread: Sequence[str] = (), *, with_origins: bool = False
) -> FromFiles:
    """The settings in the texts of a configuration file and its drop-ins.

    Args:
        texts: the texts; where two set the same key, the later one's value is used.
        unread: why other files could not be read, a line each.
        with_origins: True: finds where each key is set, too.

    Raises:
        ConfigFileError: there are mistakes.
    """
    import tomllib  # imported here: a balloond without a configuration file does without it

    whole = Gathered()
    refused: dict[int, str] = {}
    for order, (file, text) in enumerate(texts):
        try:
            whole.take(entries_of(tomllib.loads(text)), file, order)
        except (ValueError, RecursionError) as err:
            # ValueError: no TOML, or a number of over 4,300 digits, which Python's int() refuses.
            # RecursionError: thousands of brackets in each other.
            refused[order] = f"is no TOML: {printable(str(err))}"
    config, mistakes = whole.config(), whole.mistakes()
    origins: Mapping[Key, tuple[Origin, ...]] = {}
    if mistakes or refused or with_origins:
        located = _located(texts, refused)
        config, origins = located.config(), located.origins
        mistakes = located.mistakes() or mistakes
    if unread or mistakes:
        raise ConfigFileError([*unread, *mistakes])
    return FromFiles(config, origins)


def _located(texts: Sequence[ConfigText], refused: Mapping[int, str]) -> Gathered:
    """Reads the texts once more, by ``statements``, for settings and mistakes with their lines.

    Args:
        texts: the texts.
        refused: which of them tomllib does not take, and why.
    """
    from balloon_daemon.config.statements import read_statements

    gathered = Gathered()
    for order, (file, text) in enumerate(texts):
        entries, faults, is_complete = read_statements(text)
        gathered.take(entries, file, order)
        gathered.is_complete &= is_complete
        for line, column, said in faults:
            gathered.note(Where(order, line, column, file), said)
        if not faults and order in refused:
            gathered.note(Where(order, 0, 0, file), refused[order])
    return gathered

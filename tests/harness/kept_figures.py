"""The files of figures that stay open in this process."""

from balloon_daemon.linux import figures


def close_figures() -> None:
    """Closes the files that `read_figures` keeps open; the next reading opens them again."""
    while figures._kept:
        figures._kept.popitem()[1].close()

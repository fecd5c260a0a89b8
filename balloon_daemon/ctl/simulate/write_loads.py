"""``python -m balloon_daemon.ctl.simulate.write_loads DIRECTORY``: writes ``loads.py`` anew.

It fits a model to each recording of that directory, except those in which a protection rule gave
memory back, and those that are held out to check the model on guests that it was not made for.
"""

import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from balloon_daemon.ctl.simulate.fit import fit
from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load
from balloon_daemon.ctl.simulate.recording import Recording
from balloon_daemon.ctl.simulate.recording_file import read_recordings

RULED = ("-all", "-step")
"""Ends of the names of recordings in which a protection rule gave memory back when it saw need:
they show less of the load."""
HELD_OUT = "own-"
"""The beginning of the names of the held-out recordings, which were made after the model."""

_HEAD = '''"""The kinds of guests that were recorded: written by ``write_loads``. Pure."""

from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load

KINDS = {
'''


def kinds_of(recordings: Iterable[Recording]) -> dict[str, Kind]:
    """The kind of guest that each recording shows, but for those that are left out."""
    return {
        each.name: fit(each)
        for each in recordings
        if not each.name.endswith(RULED) and not each.name.startswith(HELD_OUT)
    }


def source_of(kinds: dict[str, Kind]) -> str:
    """The text of ``loads.py``."""
    lines = [_HEAD]
    for name, (size, kernel, load) in kinds.items():
        lines.append(f'    "{name}": Kind(\n        {size},\n')
        lines.append(f"        {_call(kernel, Kernel())},\n")
        lines.append(f"        {_call(load, Load(-1.0))},\n    ),\n")
    return "".join([*lines, "}\n"])


def _call(values: Kernel | Load, default: Kernel | Load) -> str:
    told = [
        f"{field.name}={getattr(values, field.name)}"
        for field in fields(values)
        if getattr(values, field.name) != getattr(default, field.name)
    ]
    return f"{type(values).__name__}({', '.join(told)})"


def main(directory: str) -> None:
    """Writes the file; ``ruff format`` lays it out."""
    path = Path(__file__).with_name("loads.py")
    path.write_text(source_of(kinds_of(read_recordings(Path(directory)))))


if __name__ == "__main__":
    main(sys.argv[1])

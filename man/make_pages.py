"""Makes the man pages of this directory: ``python man/make_pages.py``.

A page's text is in PAGE.in, written in groff's man(7) macros. Its lines ``@options@``,
``@commands@`` and ``@keys@`` are replaced by what balloond's command line, balloonctl's, and the
commented example ``systemd/balloond.toml`` say.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from balloon_daemon import __version__  # noqa: E402
from balloon_daemon.cli.flags import build_parser as balloond_parser  # noqa: E402
from balloon_daemon.config.model import default_socket  # noqa: E402
from balloon_daemon.ctl.main import build_parser as balloonctl_parser  # noqa: E402

PAGES = ("balloond.8", "balloonctl.1", "balloond.toml.5")
_SOCKET = "/run/balloond/balloond.sock"
_EVERYWHERE = ("--help", "--api", "--json")
"""Options that the page of balloonctl tells once, not with each command."""

EXAMPLE = HERE.parent / "systemd/balloond.toml"


def page(name: str) -> str:
    """The text of a page."""
    made = {
        "@options@": lambda: _options(balloond_parser()),
        "@commands@": lambda: _commands(balloonctl_parser()),
        "@keys@": lambda: _keys(EXAMPLE.read_text()),
    }
    lines = [f'.\\" Made by man/make_pages.py of man/{name}.in; change that.']
    for line in (HERE / f"{name}.in").read_text().splitlines():
        lines += made[line]() if line in made else [line.replace("@version@", __version__)]
    # Of root's balloond, whoever makes the page.
    return "\n".join(lines).replace(quoted(str(default_socket())), quoted(_SOCKET)) + "\n"


def quoted(text: str) -> str:
    """A text as man(7) takes it: no character of it is a command of groff's."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _options(parser: argparse.ArgumentParser, but: tuple[str, ...] = ()) -> Iterator[str]:
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if _is_shown(each)]
        shown = [each for each in actions if not set(but) & set(each.option_strings)]
        if not shown:
            continue
        if group.title not in ("options", "positional arguments"):
            title = group.title or ""
            yield f".SS {quoted(title[:1].upper() + title[1:])}"
        for action in shown:
            yield from _argument(parser, action)


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    formatter = parser._get_formatter()
    value = ""
    if action.nargs != 0:
        default = formatter._get_default_metavar_for_optional(action)
        value = formatter._format_args(action, default)
    names = ", ".join(f"\\fB{quoted(flag)}\\fR" for flag in action.option_strings)
    told = f" \\fI{quoted(value)}\\fR" if value and names else f"\\fI{quoted(value)}\\fR"
    yield ".TP"
    yield names + (told if value else "")
    yield quoted(formatter._expand_help(action)) if action.help else "\\&"


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        told = {each.dest: each.help or "" for each in action._choices_actions}
        for name, inner in action.choices.items():
            usage = inner.format_usage().split(None, 1)[1]
            for flags in ("[-h] ", "[--api PATH] ", "[--json] "):
                usage = usage.replace(flags, "")
            words = quoted(" ".join(usage.replace("[-h]", "").split()))
            yield f".SS {words}"
            yield quoted((inner.description or told[name]).strip())
            yield from _options(inner, but=_EVERYWHERE)
            yield from _commands(inner)


def _keys(example: str) -> Iterator[str]:
    """The keys of the example, each with the comment above it."""
    comment: list[str] = []
    for line in example.splitlines():
        key = re.fullmatch(r"#([a-z_]+) = (.*)", line)
        table = re.fullmatch(r"#?(\[[a-zA-Z.]+\])", line)
        if table is not None:
            yield f".SS {quoted(table[1])}"
            if comment and comment[0].startswith("A table"):
                yield quoted(" ".join(comment))
            comment = []
        elif key is not None:
            *said, last = " ".join(comment).rpartition("Default:")
            yield ".TP"
            yield f"\\fB{quoted(key[1])}\\fR"
            text = "".join(said) + last
            # Where a comment ends in "Default:" or "Example:", the line below it has the value.
            yield quoted(f"{text} {key[2]}." if text.endswith(":") else text)
            comment = []
        elif line.startswith("# ---") or not line:
            comment = []
        elif line.startswith("# "):
            comment.append(line[2:])


def main() -> None:
    for name in PAGES:
        (HERE / name).write_text(page(name))


if __name__ == "__main__":
    main()

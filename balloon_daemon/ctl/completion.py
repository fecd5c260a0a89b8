"""Completion of ``balloonctl`` for bash, zsh and fish, made of its own command line.

``python -m balloon_daemon.ctl.completion DIRECTORY`` writes the three files of ``completions/``.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FILES = {"FILE", "FILE.png", "TRACE", "PATH", "OUT"}
_VMS = {"VM", "NAME"}

_MADE = "# Made by python -m balloon_daemon.ctl.completion; change balloonctl instead.\n"

_NAMES = """balloonctl status 2>/dev/null |
        awk 'NR == 1 && $1 != "VM" || NF == 0 { exit } NR > 1 { print $1 }'"""
"""The names of all VMs: the first column of the table, which ends at an empty line."""


class Argument(NamedTuple):
    """An option, or an operand.

    Attributes:
        flags: an option's names; empty: an operand.
        summary: what it is, in a few words.
        value: the kind of value that it takes: ``files``, ``vms``, ``words``, ``text``; "": none.
        words: all possible values, for ``words``.
        metavar: the value's name in the help.
    """

    flags: tuple[str, ...]
    summary: str
    value: str
    words: tuple[str, ...]
    metavar: str


class Command(NamedTuple):
    """A command or, as the first of all, balloonctl itself.

    Attributes:
        path: its words after ``balloonctl``.
        summary: what it does, in a few words.
        arguments: its options and operands.
        below: the names and summaries of its own commands.
    """

    path: tuple[str, ...]
    summary: str
    arguments: tuple[Argument, ...]
    below: tuple[tuple[str, str], ...]


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = (), summary: str = ""
) -> Iterator[Command]:
    """A command line's commands, each before its own subcommands."""
    arguments, below = [], {}
    told: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = dict(action.choices)
            told = {each.dest: each.help or "" for each in action._choices_actions}
        else:
            arguments.append(_argument(parser, action))
    yield Command(path, summary, tuple(arguments), tuple((name, told[name]) for name in below))
    for name, inner in below.items():
        yield from commands(inner, (*path, name), told[name])


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest
    words = tuple(map(str, action.choices or ()))
    value = "words" if words else "files" if metavar in _FILES else "text"
    if metavar in _VMS:
        value = "vms"
    if action.nargs == 0:
        value = ""
    told = (action.help or metavar) % {**vars(action), "prog": parser.prog}
    return Argument(tuple(action.option_strings), told.split(";")[0], value, words, metavar)


def bash(made: list[Command]) -> str:
    """The file for bash, 4.4 or newer."""
    paths = " | ".join("/" + "/".join(command.path) for command in made[1:])
    of_values: dict[str, list[str]] = {}
    for command in made:
        for option in (each for each in command.arguments if each.flags and each.value):
            what = option.value
            if option.words:
                what = f"words words='{' '.join(option.words)}'"
            for flag in option.flags:
                of_values.setdefault(what, []).append(f"{_joined(command)}:{flag}")
    values = "".join(
        f"    {' | '.join(cases)})\n        kind={what}\n        ;;\n"
        for what, cases in of_values.items()
    )
    return f"""\
# Completion of balloonctl for bash.
{_MADE}
_balloonctl_vms() {{
    {_NAMES}
}}

_balloonctl() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
    local command='' kind='' words='' options='' word
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $command/$word in
        {paths})
            command=$command/$word
            ;;
        esac
    done
    case $command:$before in
{values}    *)
        case $command in
{"".join(map(_bash_command, made))}        esac
        [[ $current != -* ]] || kind=words words=$options
        ;;
    esac
    case $kind in
    files)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        ;;
    vms)
        # Whoever starts a VM chooses its name. compgen -W would run the $(…) in a name, and so
        # would the shell at the end of the line: quote each name, and compare it here.
        while IFS= read -r word; do
            printf -v word %q "$word"
            [[ $word != "$current"* ]] || COMPREPLY+=("$word")
        done < <(_balloonctl_vms)
        ;;
    words)
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        ;;
    esac
}}
complete -F _balloonctl balloonctl
"""


def _bash_command(command: Command) -> str:
    options = " ".join(flag for each in command.arguments for flag in each.flags)
    kind, words = _operand(command), ""
    if command.below:
        kind, words = "words", f" words='{' '.join(name for name, _ in command.below)}'"
    path = _joined(command) or "''"
    return f"        {path})\n            kind={kind}{words} options='{options}'\n            ;;\n"


def _operand(command: Command) -> str:
    """The kind of value of the command's first operand."""
    return next((each.value for each in command.arguments if not each.flags), "none")


def _joined(command: Command) -> str:
    return "".join(f"/{word}" for word in command.path)


def zsh(made: list[Command]) -> str:
    """The file for zsh, in whose $fpath it is to be named ``_balloonctl``."""
    functions = "".join(map(_zsh_command, reversed(made)))
    return f"""\
#compdef balloonctl
# Completion of balloonctl for zsh.
{_MADE}
_balloonctl_vms() {{
    local -a names=(${{(f)"$({_NAMES})"}})
    compadd -a names
}}
{functions}
_balloonctl "$@"
"""


def _zsh_command(command: Command) -> str:
    name = "_".join(("_balloonctl", *command.path))
    operands = [argument for argument in command.arguments if not argument.flags]
    options = [argument for argument in command.arguments if argument.flags]
    lines = [_zsh_argument(argument) for argument in (*options, *operands[:1])]
    if not command.below:
        body = " \\\n        ".join(["_arguments -s", *lines])
        return f"\n{name}() {{\n    {body}\n}}\n"
    body = " \\\n        ".join(["_arguments -C", *lines, "'1: :->command'", "'*:: :->rest'"])
    told = "\n".join(
        f"            {_quoted(f'{each}:{summary}')}" for each, summary in command.below
    )
    cases = "\n".join(f"        {each}) {name}_{each} ;;" for each, _ in command.below)
    return f"""
{name}() {{
    local curcontext=$curcontext state line
    {body}
    case $state in
    command)
        local -a commands=(
{told}
        )
        _describe command commands
        ;;
    rest)
        case $words[1] in
{cases}
        esac
        ;;
    esac
}}
"""


def _zsh_argument(argument: Argument) -> str:
    def plain(text: str) -> str:
        return re.sub(r"[][:\\]", r"\\\g<0>", text)

    actions = {"files": "_files", "vms": "_balloonctl_vms", "text": " "}
    action = actions.get(argument.value, f"({' '.join(argument.words)})")
    value = f":{plain(argument.metavar)}:{action}" if argument.value else ""
    if not argument.flags:
        return _quoted(f"*{value}")
    ends = [flag + "=" * (bool(value) and flag.startswith("--")) for flag in argument.flags]
    if len(ends) == 1:
        return _quoted(f"{ends[0]}[{plain(argument.summary)}]{value}")
    either, names = " ".join(argument.flags), ",".join(ends)
    return f"'({either})'{{{names}}}{_quoted(f'[{plain(argument.summary)}]{value}')}"


def fish(made: list[Command]) -> str:
    """The file for fish, 3.1 or newer."""
    lines = []
    for command in made:
        at, ends = (
            _quoted(" ".join((f"__balloonctl_{test}", *command.path))) for test in ("at", "ends")
        )
        lines += [f"-n {ends} -a {name} -d {_quoted(told)}" for name, told in command.below]
        lines += [
            f"-n {at} {_fish_option(option)}" for option in command.arguments if option.flags
        ]
        if (operand := _operand(command)) in _FISH_OPERANDS:
            lines.append(f"-n {at} {_FISH_OPERANDS[operand]}")
    body = "\n".join(f"complete -c balloonctl {line}" for line in lines)
    return f"""\
# Completion of balloonctl for fish.
{_MADE}
function __balloonctl_vms
    {_NAMES}
end

# Whether the line's first words are balloonctl and these.
function __balloonctl_at
    set -l words (commandline -opc)
    test "$words[2..]" = "$argv"; and return
    test (count $argv) -gt 0; and string match -q -- "$argv *" "$words[2..]"
end

# Whether these are all words of the line so far.
function __balloonctl_ends
    set -l words (commandline -opc)
    test "$words[2..]" = "$argv"
end

complete -c balloonctl -f
{body}
"""


_FISH_OPERANDS = {"files": "-F", "vms": "-a '(__balloonctl_vms)'"}


def _fish_option(option: Argument) -> str:
    flags = (f"-l {each[2:]}" if each[:2] == "--" else f"-s {each[1:]}" for each in option.flags)
    values = {"": "", "text": " -x", "files": " -rF", "vms": " -xa '(__balloonctl_vms)'"}
    value = values.get(option.value, f" -xa {_quoted(' '.join(option.words))}")
    return f"{' '.join(flags)}{value} -d {_quoted(option.summary)}"


def _quoted(text: str) -> str:
    """A word in single quotes, as all three shells take it."""
    return "'" + text.replace("'", "'\\''") + "'"


FILES = {"balloonctl.bash": bash, "_balloonctl": zsh, "balloonctl.fish": fish}


def main(directory: str) -> None:
    """Writes the files."""
    from balloon_daemon.ctl.main import build_parser

    made = list(commands(build_parser()))
    for name, make in FILES.items():
        Path(directory, name).write_text(make(made))


if __name__ == "__main__":
    main(sys.argv[1])

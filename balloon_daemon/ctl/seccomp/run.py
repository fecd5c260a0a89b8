"""``balloonctl seccomp run`` and ``trace``."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from balloon_daemon.ctl.output_file import write_output
from balloon_daemon.ctl.seccomp import words
from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.ctl.seccomp.inject import UnsupportedProgramError
from balloon_daemon.ctl.seccomp.ptrace import Call
from balloon_daemon.ctl.seccomp.trace import UsedCalls
from balloon_daemon.ctl.seccomp.watch import Start, Watch
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.filter import NATIVE_ARCH
from balloon_daemon.seccomp.policy import Action, ParsedPolicy, Verdict

Run = Callable[[argparse.Namespace], int]

_KILLS = (Action.KILL_PROCESS, Action.KILL_THREAD, Action.TRAP)


def add_run_parsers(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    common: argparse.ArgumentParser,
    read: Callable[[argparse.Namespace, Path], ParsedPolicy],
    with_errors: Callable[[Run], Run],
) -> None:
    """Adds the two subcommands. Args: shared options, a reader of policies, an error handler."""
    start = argparse.ArgumentParser(add_help=False)
    start.add_argument(
        "--from",
        dest="start",
        choices=[choice.value for choice in Start],
        default=Start.ENTRY.value,
        help="entry: the filter counts from the program's own entry, after its dynamic loader, "
        "as with minijail0 (default); exec: from its execve on, as for static programs",
    )
    text = "run a command under a policy and name the call that a violation made"
    run = commands.add_parser("run", help=text, description=text, parents=[common, start])
    run.add_argument("file", type=Path, metavar="FILE")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    run.set_defaults(run=with_errors(lambda options: _run(options, read)))

    text = "run a command with everything allowed and write a policy for the calls it made"
    trace = commands.add_parser("trace", help=text, description=text, parents=[start])
    trace.add_argument("-o", "--output", metavar="FILE", help="where to (default: stdout)")
    trace.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    trace.set_defaults(run=with_errors(_trace))


def _command(options: argparse.Namespace) -> list[str]:
    command: list[str] = options.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise ConfigError("no command was given; write it after --")
    return command


def _foreign_abi(policy: ParsedPolicy, call: Call) -> str:
    """The name of the ABI by which a call was made; "" if it is the policy's."""
    if call.audit_arch != policy.abi.audit_arch:
        return f"AUDIT_ARCH {call.audit_arch:#x}"
    return "x32" if words.is_foreign(call.number, policy) else ""


def _foreign_call(pid: int, call: Call, abi: str) -> str:
    return f"balloonctl: process {pid} was killed: call {call.number} of another ABI ({abi})"


def _watch(watch: Watch) -> int:
    try:
        return watch.run()
    except UnsupportedProgramError as err:
        raise ConfigError(f"{err}; try --from exec") from err
    except KeyboardInterrupt:
        return 130


def _run(
    options: argparse.Namespace, read: Callable[[argparse.Namespace, Path], ParsedPolicy]
) -> int:
    policy = read(options, options.file)
    if policy.abi.name != NATIVE_ARCH:
        raise ConfigError(f"a filter for {policy.abi.name} cannot run on {NATIVE_ARCH}")
    arch = load_arch(NATIVE_ARCH)
    file = printable(policy.files[0])
    reported: set[tuple[int, Call]] = set()

    def on_kill(pid: int, call: Call) -> None:
        decision = evaluate(policy, call.audit_arch, call.number, call.arguments)
        # Where a filter kills a process, the kernel kills all of its threads, each in whatever
        # call it is. So a killed thread's call may be one that the policy allows; only a call that
        # the policy kills is reported.
        if decision.verdict.action not in _KILLS or (pid, call) in reported:
            return
        reported.add((pid, call))
        name = arch.call_name(call.number) or f"call {call.number}"
        abi = _foreign_abi(policy, call)
        if abi:
            print(_foreign_call(pid, call, abi), file=sys.stderr)
            return
        shown = words.call_in_words(name, call.arguments, arch)
        stopped = "stopped" if decision.verdict.action is Action.TRAP else "killed"
        print(f"balloonctl: process {pid} was {stopped}: {shown}", file=sys.stderr)
        if decision.filter is not None and decision.filter.place is not None:
            print(words.place_in_words(decision.filter.place), file=sys.stderr)
        elif decision.rules is not None:
            print(f"  no condition of {name} in {file} holds", file=sys.stderr)
        else:
            print(f"  {file} has no rule for {name}", file=sys.stderr)

    def on_call(pid: int, call: Call) -> None:
        """Handles a call with the policy's verdict ``trace``: lets the call go on."""

    watch = Watch(_command(options), compile_bpf(policy), Start(options.start), on_call, on_kill)
    return _watch(watch)


def _one_line(command: list[str]) -> str:
    return "".join(c if c.isprintable() else " " for c in shlex.join(command))


def _trace(options: argparse.Namespace) -> int:
    arch = load_arch(NATIVE_ARCH)
    used = UsedCalls(arch)
    everything = ParsedPolicy(arch.abi, (), Verdict(Action.TRACE), (), (), denylist=False)

    def on_call(pid: int, call: Call) -> None:
        used.add(call.number, call.arguments)

    def on_kill(pid: int, call: Call) -> None:
        abi = _foreign_abi(everything, call)
        if abi:
            print(_foreign_call(pid, call, abi), file=sys.stderr)

    command = _command(options)
    status = _watch(
        Watch(command, compile_bpf(everything), Start(options.start), on_call, on_kill)
    )
    lines = [
        f"# What this used, from its {options.start} on: {_one_line(command)}",
        f"# {len(used.counts)} calls, made {used.counts.total()} times. Other inputs, errors and",
        "# signals use more: read it, and trace those too.",
        *used.policy(),
    ]
    text = "".join(f"{line}\n" for line in lines)
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_output(Path(options.output), text.encode())
    if status:
        print(f"balloonctl: {printable(command[0])} ended with status {status}", file=sys.stderr)
    return status

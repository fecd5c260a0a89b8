"""``balloonctl seccomp``: check, explain, test, compile, run and trace policy files."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from balloon_daemon.ctl.output_file import write_output
from balloon_daemon.ctl.seccomp import words
from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.ctl.seccomp.judged_call import parse_call
from balloon_daemon.ctl.seccomp.pfc import write_pfc
from balloon_daemon.ctl.seccomp.run import add_run_parsers
from balloon_daemon.errors import BalloondError, PolicyFileError, PolicyProblem, printable
from balloon_daemon.linux.bounded_file import why_unreadable
from balloon_daemon.seccomp.bpf import SOCK_FILTER
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.constants import ARCH_NAMES
from balloon_daemon.seccomp.evaluator import Answer, evaluate
from balloon_daemon.seccomp.filter import NATIVE_ARCH, read_policy
from balloon_daemon.seccomp.judge import Disagreement, opinion_in_words
from balloon_daemon.seccomp.libseccomp import second_opinion
from balloon_daemon.seccomp.policy import Action, Dialect, ParsedPolicy
from balloon_daemon.seccomp.policy_file import read_text

_DEFAULTS = {action.name.lower().replace("_", "-"): action for action in Action} | {
    "kill": Action.KILL_PROCESS,
    "user-notify": Action.USER_NOTIF,
}
del _DEFAULTS["errno"], _DEFAULTS["user-notif"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``seccomp`` and its subcommands; each sets ``run``, which returns an exit status."""
    parser = subparsers.add_parser(
        "seccomp",
        help="check, explain, test, compile, run and trace seccomp policy files",
        description="Tools for minijail's seccomp policy files; docs/policy-files.md explains "
        "the language.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--arch",
        default=NATIVE_ARCH,
        metavar="ARCH",
        help=f"for which architecture: {', '.join(ARCH_NAMES)} (default: this machine's)",
    )
    common.add_argument(
        "--default",
        choices=sorted(_DEFAULTS),
        default="kill-process",
        metavar="ACTION",
        help="for calls that nothing allows, where no @default says otherwise: "
        f"{', '.join(sorted(_DEFAULTS))} (default: kill-process)",
    )
    common.add_argument(
        "--dialect",
        choices=[dialect.value for dialect in Dialect],
        default=Dialect.PYTHON.value,
        help="which of minijail's compilers to follow: python, compile_seccomp_policy (default), "
        "or c, minijail0 -S, which reads 'condition; return ERROR' the other way round",
    )
    common.add_argument(
        "--include-map",
        action="append",
        default=[],
        type=_include_map,
        metavar="FROM=TO",
        help="read included files whose path starts with FROM from TO instead",
    )

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(run=_with_errors(run))
        return command

    check = add(
        "check",
        _check,
        "say all that is wrong with policy files, and whether libseccomp makes the same of them; "
        "exit status 0, 2, or 1 where libseccomp disagrees",
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument("--json", action="store_true", help="write one JSON object")

    explain = add("explain", _explain, "say in words what a policy allows, and what is missing")
    explain.add_argument("file", type=Path, metavar="FILE")

    test = add("test", _test, "say what happens to one call, and which rule decides")
    test.add_argument("file", type=Path, metavar="FILE")
    # No parentheses in the metavar: argparse before Python 3.13 drops them from the usage.
    test.add_argument("call", metavar="CALL", help="such as 'madvise(0, 4096, MADV_REMOVE)'")

    compile_ = add("compile", _compile, "write the filter for another launcher to load")
    compile_.add_argument("file", type=Path, metavar="FILE")
    compile_.add_argument("-o", "--output", metavar="OUT", required=True, help="- for stdout")
    compile_.add_argument(
        "--format",
        choices=["bpf", "pfc"],
        default="bpf",
        help="bpf: struct sock_filter, as minijail0 --seccomp-bpf-binary and bubblewrap "
        "--seccomp load it; pfc: pseudo code to read",
    )
    add_run_parsers(commands, common, _read_and_warn, _with_errors)


def _include_map(text: str) -> tuple[str, str]:
    source, sign, target = text.partition("=")
    if not sign or not source:
        raise argparse.ArgumentTypeError(f"{text!r} is not FROM=TO")
    return source, target


def _with_errors(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Wraps a command: an error that is the operator's mistake becomes a line on standard error
    and exit status 2."""

    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except PolicyFileError as err:
            print(err, file=sys.stderr)
        except BalloondError as err:
            print(f"balloonctl: {printable(str(err))}", file=sys.stderr)
        except OSError as err:
            if err.filename is None:
                raise  # the fault is this host's, not that of a file that the user named
            where = printable(f"{err.filename}: {err.strerror or err}")
            print(f"balloonctl: {where}", file=sys.stderr)
        return 2

    return guarded


def _read(options: argparse.Namespace, path: Path) -> ParsedPolicy:
    maps: Sequence[tuple[str, str]] = options.include_map

    def read(name: str) -> str:
        for source, target in maps:
            if name.startswith(source):
                return read_text(target + name.removeprefix(source))
        return read_text(name)

    try:
        return read_policy(
            path,
            default=_DEFAULTS[options.default],
            arch=load_arch(options.arch),
            dialect=Dialect(options.dialect),
            read=read,
        )
    except OSError as err:
        raise OSError(err.errno, why_unreadable(err), str(path)) from err


def _read_and_warn(options: argparse.Namespace, path: Path) -> ParsedPolicy:
    policy = _read(options, path)
    _warn(policy.warnings)
    return policy


def _warn(warnings: Sequence[PolicyProblem]) -> None:
    for problem in warnings:
        print(problem.with_mark("warning: "), file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    results = [_check_one(options, path) for path in options.files]
    if options.json:
        json.dump({"ok": all(r["ok"] for r in results), "files": results}, sys.stdout, indent=2)
        print()
    if any(result["errors"] for result in results):
        return 2
    return 0 if all(result["ok"] for result in results) else 1


def _check_one(options: argparse.Namespace, path: Path) -> dict[str, object]:
    result: dict[str, object] = {"file": str(path), "ok": False, "arch": options.arch}
    result["dialect"] = options.dialect
    errors: tuple[PolicyProblem, ...] = ()
    warnings: tuple[PolicyProblem, ...] = ()
    try:
        policy = _read(options, path)
        bpf = compile_bpf(policy)
    except PolicyFileError as err:
        errors = err.problems
    except OSError as err:
        errors = (PolicyProblem(str(path), 0, 0, 1, "", f"cannot be read: {err.strerror}"),)
    else:
        warnings = policy.warnings
        opinion = second_opinion(policy, bpf)
        length = len(bpf) // SOCK_FILTER.size
        result |= {"ok": not isinstance(opinion, Disagreement), "arch": policy.abi.name}
        result |= {"calls": len(policy.calls), "instructions": length}
        result |= {"included": policy.files[1:], "judge": opinion_in_words(opinion)}
    result["errors"] = [problem._asdict() for problem in errors]
    result["warnings"] = [problem._asdict() for problem in warnings]
    if not options.json:
        for problem in errors:
            whole = printable(f"{problem.file}: {problem.message}")
            print(problem if problem.line else whole, file=sys.stderr)
        _warn(warnings)
        if not errors:
            size = f"{result['calls']} calls, {length} instructions for {result['arch']}"
            print(f"{printable(str(path))}: {size}")
            told = sys.stdout if result["ok"] else sys.stderr
            print(f"{printable(str(path))}: {result['judge']}", file=told)
    return result


def _explain(options: argparse.Namespace) -> int:
    policy = _read(options, options.file)
    for line in words.explain(policy, load_arch(options.arch)):
        print(line)
    for problem in policy.warnings:
        print(f"\n{problem.with_mark('warning: ')}")
    return 0


def _test(options: argparse.Namespace) -> int:
    policy = _read_and_warn(options, options.file)
    arch = load_arch(options.arch)
    number, given = parse_call(options.call, arch)
    name = arch.call_name(number) or f"call {number}"
    arguments = [*given, *[0] * (6 - len(given))]
    outcome = evaluate(policy, policy.abi.audit_arch, number, arguments)
    verdict = outcome.verdict
    shown = f"ERRNO({verdict.errno})" if verdict.action is Action.ERRNO else verdict.action.name
    print(f"{shown}  {words.call_in_words(name, given, arch)}: ", end="")
    print(words.verdict_in_words(verdict, arch))
    print(_because(policy, outcome, number, name))
    return 0


def _because(policy: ParsedPolicy, outcome: Answer, number: int, name: str) -> str:
    if words.is_foreign(number, policy):
        return "it is a call of another ABI (x32), which no policy can allow"
    if outcome.filter is None:
        return f"no rule of {printable(policy.files[0])} names {name}, so the default decides"
    if outcome.filter.place is not None:
        return words.place_in_words(outcome.filter.place)
    tried = [rule.place for rule in outcome.rules.filters if rule.place] if outcome.rules else []
    shown = "\n".join(str(place.problem("this does not hold")) for place in tried)
    return f"no rule for {name} holds, so the default decides\n{shown}"


def _compile(options: argparse.Namespace) -> int:
    policy = _read_and_warn(options, options.file)
    if options.format == "bpf":
        content = compile_bpf(policy)
    else:
        content = "".join(f"{line}\n" for line in write_pfc(policy)).encode()
    if options.output == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write_output(Path(options.output), content)
    return 0

"""Compares our program of a policy with another compiler's, call by call. Pure.

The other compiler is libseccomp (``seccomp.libseccomp``): it gets the policy as rules, not as
text, and shares no code with ``seccomp.compiler``. Both programs run in ``seccomp.machine`` for
the same calls, and ``seccomp.evaluator`` gives the text's meaning for each call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.flat_rules import FlatRule, TooManyRulesError, flat_rules
from balloon_daemon.seccomp.machine import BadProgramError, BpfMachine
from balloon_daemon.seccomp.policy import Action, ParsedPolicy
from balloon_daemon.seccomp.probes import Draw, Probe, probes

DRAWN_CALLS = 4000


class OtherProgram(NamedTuple):
    """Another compiler's program of a policy.

    Attributes:
        compiler: its name and version.
        bpf: the program, an array of struct sock_filter.
    """

    compiler: str
    bpf: bytes


class CannotSayError(Exception):
    """The other compiler cannot be run, or cannot express this policy; the text says why."""


OtherCompiler = Callable[[ParsedPolicy, Sequence[FlatRule]], OtherProgram]
"""Compiles rules for a policy's architecture and default. Raises: CannotSayError."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both programs and the evaluator gave the same answer to every call.

    Attributes:
        compiler: the other compiler's name and version.
        rules: how many rules it was given.
        calls: how many calls were compared.
    """

    compiler: str
    rules: int
    calls: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A call to which the answers differ.

    Attributes:
        compiler: the other compiler's name and version.
        call: the call.
        name: the call's name, where the policy names the call.
        theirs: the answer of the other compiler's program, a SECCOMP_RET_* value.
        ours: the answer of our program.
        text: the answer according to the evaluator.
    """

    compiler: str
    call: Probe
    name: str
    theirs: int
    ours: int
    text: int


@dataclass(frozen=True, slots=True)
class NoOpinion:
    """There is no program to compare with; ``why`` is the reason."""

    why: str


Opinion = Agreement | Disagreement | NoOpinion


def judge(policy: ParsedPolicy, bpf: bytes, compile_rules: OtherCompiler, draw: Draw) -> Opinion:
    """Lets another compiler compile the policy, and compares the programs.

    Args:
        policy: the policy.
        bpf: our program of it.
        compile_rules: the other compiler.
        draw: gives the random numbers from which further calls are made.
    """
    try:
        rules = flat_rules(policy)
        other = compile_rules(policy, rules)
        theirs = BpfMachine(other.bpf)
    except TooManyRulesError as err:
        return NoOpinion(f"{err} would take too many of libseccomp's rules")
    except CannotSayError as err:
        return NoOpinion(str(err))
    except BadProgramError as err:
        return NoOpinion(f"the kernel would not take {other.compiler}'s program: {err}")
    ours = BpfMachine(bpf)
    count = 0
    for call in probes(policy, DRAWN_CALLS, draw):
        count += 1
        text = evaluate(policy, *call).verdict.value
        answers = theirs.run(*call), ours.run(*call)
        if answers != (text, text):
            names = [rules.name for rules in policy.calls if rules.number == call.number]
            name = names[0] if names else f"call {call.number}"
            return Disagreement(other.compiler, call, name, *answers, text)
    return Agreement(other.compiler, len(rules), count)


def opinion_in_words(opinion: Opinion) -> str:
    """An opinion in one line."""
    match opinion:
        case Agreement(compiler, rules, calls):
            return f"{compiler} agrees: {rules:,} rules, {calls:,} calls"
        case Disagreement(compiler, call, name, theirs, ours, text):
            arguments = ", ".join(f"{value:#x}" for value in call.arguments)
            return (
                f"{compiler} disagrees on {name}({arguments}) of AUDIT_ARCH {call.audit_arch:#x}: "
                f"it says {_answer(theirs)}, balloond's program {_answer(ours)}, and the policy "
                f"means {_answer(text)}"
            )
        case NoOpinion(why):
            return f"no second opinion: {why}"
        case _:
            assert_never(opinion)


def _answer(value: int) -> str:
    """``ALLOW``, ``ERRNO(1)``; in hexadecimal where the number is no action."""
    names = {action.value: action.name for action in Action}
    name = names.get(value & 0xFFFF0000, f"{value:#x}")
    return f"{name}({value & 0xFFFF})" if name == Action.ERRNO.name else name

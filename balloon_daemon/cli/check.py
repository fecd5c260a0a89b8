"""``balloond --check``: finds out whether a daemon with these settings would run, without serving
VMs."""

from balloon_daemon.cli.trial import GIVEN_BYTES, try_device
from balloon_daemon.config.model import Config
from balloon_daemon.errors import JudgeError, printable
from balloon_daemon.guests.jailed.supervisor import Jail
from balloon_daemon.host.low_memory import LowMemorySource
from balloon_daemon.seccomp.filter import CompiledFilter
from balloon_daemon.seccomp.judge import Disagreement, opinion_in_words
from balloon_daemon.seccomp.libseccomp import second_opinion
from balloon_daemon.sizing.balloon_policy import max_balloon_bytes
from balloon_daemon.units import format_size


def check(config: Config, source: LowMemorySource, jail: Jail, compiled: CompiledFilter) -> str:
    """Runs the checks of ``--check``.

    Returns:
        What was found, in lines without the last one's end.

    Raises:
        SourceError: low memory cannot be seen here.
        TrialError: no device can run here.
        JudgeError: libseccomp compiles the policy to a filter that answers a call differently.
    """
    source.check()
    outcome = try_device(jail.identity, jail.fork)
    found = [
        f"policy file  {printable(str(config.policy_file))}: compiled",
        f"judge        {_second_opinion(compiled)}",
        f"low memory   {source.describe()}",
    ]
    if config.vm_mem_bytes is not None:
        limit = max_balloon_bytes(config.vm_mem_bytes)
        step = format_size(limit // config.policy.steps)
        found.append(
            f"balloon      at most {format_size(limit)} of {format_size(config.vm_mem_bytes)}, "
            f"in {config.policy.steps} steps of {step}"
        )
    who = (
        f"user {config.device_user}"
        if jail.identity
        else "the user who starts balloond (not root)"
    )
    found += [
        f"device       runs as {who}, under seccomp",
        f"trial        a jailed device was ready after {outcome.ready_s * 1000:.1f} ms and gave "
        f"{format_size(GIVEN_BYTES)} back in {outcome.given_s * 1000:.1f} ms",
        f"socket       {config.socket}: free",
    ]
    return "\n".join(found)


def _second_opinion(compiled: CompiledFilter) -> str:
    """libseccomp's opinion of the filter, in one line.

    Raises:
        JudgeError: libseccomp's filter answers a call differently.
    """
    opinion = second_opinion(compiled.policy, compiled.bpf)
    if isinstance(opinion, Disagreement):
        raise JudgeError(f"policy file {compiled.policy.files[0]}: {opinion_in_words(opinion)}")
    return opinion_in_words(opinion)

"""``balloond --check``: finds out whether a daemon with these settings would run, without serving
VMs."""

from collections.abc import Iterator

from balloon_daemon.cli.check_settings import settings_said
from balloon_daemon.cli.flags import EXIT_FAILURE, EXIT_OK, Settings
from balloon_daemon.cli.opening import look
from balloon_daemon.cli.own_api import check_api
from balloon_daemon.cli.own_device import OwnDevice
from balloon_daemon.cli.own_metrics import check_metrics
from balloon_daemon.cli.printing import answer, complain, limits_said, vm_said
from balloon_daemon.cli.risks import risks
from balloon_daemon.cli.trial import GIVEN_BYTES, try_device
from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import VmConfig
from balloon_daemon.errors import JudgeError, printable
from balloon_daemon.events import ApiNotOpened, SocketNotOpened
from balloon_daemon.guests.open_guest import Low
from balloon_daemon.host.low_memory import LowMemorySource
from balloon_daemon.linux.signals import Interruptible
from balloon_daemon.records.words.daemon import said_of_daemon
from balloon_daemon.seccomp.filter import CompiledFilter
from balloon_daemon.seccomp.judge import Disagreement, opinion_in_words
from balloon_daemon.seccomp.libseccomp import second_opinion
from balloon_daemon.sizing.balloon_policy import max_balloon_bytes
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.units import format_size


def check(
    settings: Settings, source: LowMemorySource, own: OwnDevice | None, too_much: str, low: Low
) -> int:
    """Runs the checks of ``--check``, and prints what was found.

    Args:
        settings: the settings.
        source: the low-memory source.
        own: the own device's settings; None: no VM needs it.
        too_much: a warning about the margin; "" where there is none.
        low: gives the low descriptor numbers that are needed to start processes (``LowNumbers``).

    Returns:
        The exit status.

    Raises:
        ConfigError: the socket for VMs without a name (``--socket``) cannot be opened, or the
            API's (``--api``), or metrics cannot go where they are wanted (``--metrics``).
        SourceError: low memory cannot be seen here.
        TrialError: no device can run here.
        JudgeError: libseccomp compiles the seccomp policy to a filter that has another verdict on
            some system call.
    """
    config = settings.config
    failed = look(config, keep_fds=settings.args.keep_fds)
    warned: list[SocketNotOpened | ApiNotOpened] = [*failed]
    if (no_api := check_api(config.api)) is not None:
        warned.append(no_api)
    check_metrics(config.metrics)
    with Interruptible():
        for warning in () if own is None else own.warnings():
            complain(warning)
        for risk in risks(config):
            complain(f"warning: {printable(risk)}")
        for event in warned:
            complain(f"warning: {printable(said_of_daemon(event)[1])}")
        if too_much:
            complain(f"warning: {too_much}")
        source.check()
        found = [f"setting      {said}" for said in settings_said(settings)]
        found.append(f"low memory   {source.describe()}")
        found += ["device       none, as no VM needs one"] if own is None else _tried(config, own)
        if config.others or config.discover.places:
            from balloon_daemon.cli.check_vms import check_vms

            found += check_vms(config, low)
        closed = {event.name for event in failed}
        found += [
            f"socket       {_own_said(vm)}: free"
            for vm in config.own_sockets
            if vm.name not in closed
        ]
        return EXIT_OK if answer("\n".join(found)) else EXIT_FAILURE


def _own_said(vm: VmConfig) -> str:
    """The VM that a vhost-user socket is for, else the socket's path; with the limits of the VM's
    balloon where the VM's size is set."""
    if not vm.name or vm.vm_mem_bytes is None:
        return vm_said(vm) if vm.name else vm.address
    most_bytes = Terms(vm.settings).max_bytes(vm.vm_mem_bytes)
    return f"{vm_said(vm)}, {limits_said(vm.vm_mem_bytes, most_bytes)}"


def _tried(config: Config, own: OwnDevice) -> Iterator[str]:
    outcome = try_device(own.identity, own.template.fork)
    yield f"policy file  {printable(str(config.policy_file))}: compiled"
    yield f"judge        {_second_opinion(own.compiled)}"
    if config.vm_mem_bytes is not None:
        limit = max_balloon_bytes(config.vm_mem_bytes)
        step = format_size(limit // config.policy.steps)
        yield (
            f"balloon      at most {format_size(limit)} of {format_size(config.vm_mem_bytes)}, "
            f"in {config.policy.steps} steps of {step}"
        )
    as_root = own.identity is not None
    who = f"user {own.user}" if as_root else "the user who starts balloond (not root)"
    yield f"device       runs as {who}, under seccomp"
    yield (
        f"trial        a jailed device was ready after {outcome.ready_s * 1000:.1f} ms and gave "
        f"{format_size(GIVEN_BYTES)} back in {outcome.given_s * 1000:.1f} ms"
    )
    if said := own.shares_user_said():
        yield f"warning      {said}"


def _second_opinion(compiled: CompiledFilter) -> str:
    """libseccomp's opinion of the filter, in one line.

    Raises:
        JudgeError: libseccomp's filter has another verdict on some system call.
    """
    opinion = second_opinion(compiled.policy, compiled.bpf)
    if isinstance(opinion, Disagreement):
        raise JudgeError(f"policy file {compiled.policy.files[0]}: {opinion_in_words(opinion)}")
    return opinion_in_words(opinion)

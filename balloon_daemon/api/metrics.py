"""The metrics of the host, of each VM and of balloond itself, as text for Prometheus. Pure.

Formats: Prometheus' text format 0.0.4, and OpenMetrics 1.0.0. docs/metrics.md lists all families;
a test holds the two together. A figure that is not known has no sample; 0 is a figure.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from balloon_daemon import __version__
from balloon_daemon.api.shown import returned_bytes
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.records.counters import Counters
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.status import HostStatus, OwnFigures, PolicyStatus, Undriven, VmStatus
from balloon_daemon.units import MIB, VmId

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

MOST_ACCEPTED = 16
"""How many media types of a header Accept, and parameters of each, are looked at: Prometheus sends
five. Thousands would take milliseconds, in which no VM is served."""

GAUGE, COUNTER, INFO = "gauge", "counter", "info"

Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float | None]]
"""The values of a family's labels, and the sample's value; None: it is not known."""

Of = TypeVar("Of")


class Family(NamedTuple):
    """All samples of one name.

    Attributes:
        name: the samples' name.
        kind: its type: ``GAUGE``, ``COUNTER`` or ``INFO``, which is 1 always.
        text: what it is.
        labels: the names of its labels.
    """

    name: str
    kind: str
    text: str
    labels: Labels = ()

    def head(self, *, openmetrics: bool) -> str:
        """The lines before its samples."""
        name, kind = self.name, self.kind
        if openmetrics:  # OpenMetrics names a family without its samples' suffix.
            name = name.removesuffix({COUNTER: "_total", INFO: "_info"}.get(kind, ""))
        elif kind == INFO:
            kind = GAUGE
        return f"# HELP {name} {self.text}\n# TYPE {name} {kind}\n"

    def lines(self, samples: Samples) -> str:
        """The lines of samples; those that are not known are left out."""
        return "".join(
            f"{self.name}{_labelled(self.labels, values)} {_number(value)}\n"
            for values, value in samples
            if value is not None
        )


Row = tuple[Family, Callable[[Of], Samples]]


def _labelled(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    pairs = zip(names, values, strict=True)
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """A value; a whole number has all of its digits."""
    return repr(int(value)) if isinstance(value, int) else repr(value)


def _row(name: str, text: str, read: Callable[[Of], float | None], kind: str = GAUGE) -> Row[Of]:
    """A family with one sample, without labels."""
    return Family(name, kind, text), lambda of: (((), read(of)),)


def _vm_row(
    name: str, text: str, read: Callable[[VmStatus], float | None], kind: str = GAUGE
) -> Row[VmStatus]:
    """A family with one sample for each VM; the label with the VM's name is added."""
    return Family(name, kind, text, ("vm",)), lambda vm: (((), read(vm)),)


def _policy(read: Callable[[PolicyStatus], float]) -> Callable[[VmStatus], float | None]:
    return lambda vm: None if vm.policy is None else read(vm.policy)


def _available(host: HostStatus) -> int | None:
    seen = host.source.seen
    return seen.available_mib * MIB if isinstance(seen, Reading) else None


def _margin(host: HostStatus) -> int | None:
    seen = host.source.seen
    return seen.margin_mib * MIB if isinstance(seen, Reading) else None


def _low(host: HostStatus) -> bool | None:
    match host.source.seen:
        case Reading() as seen:
            return seen.is_low
        case NeverLow():
            return False
        case None:
            return None


HOST: tuple[Row[HostStatus], ...] = (
    _row("balloond_host_available_bytes", "Memory that the host has available.", _available),
    _row("balloond_host_margin_bytes", "Less available memory than this is low.", _margin),
    _row("balloond_host_low", "Whether memory is low: 1 or 0.", _low),
    _row(
        "balloond_host_known",
        "Whether the figures about low memory are known: 1 or 0.",
        lambda host: host.source.seen is not None,
    ),
    _row(
        "balloond_host_reserved_bytes",
        "Memory that operators have reserved above the margin.",
        lambda host: host.reserved_mib * MIB,
    ),
    _row(
        "balloond_host_paused",
        "Whether an operator has paused the taking of memory from any VM: 1 or 0.",
        lambda host: host.paused_s is not None,
    ),
    _row(
        "balloond_host_readings_total",
        "Readings of the figures about low memory.",
        lambda host: host.source.reads,
        COUNTER,
    ),
    _row(
        "balloond_host_unknown_readings_total",
        "Readings in which a figure was not known.",
        lambda host: host.source.unknown,
        COUNTER,
    ),
    _row(
        "balloond_host_wakeups_total",
        "How often the kernel has woken balloond because of memory.",
        lambda host: host.source.wakeups,
        COUNTER,
    ),
    _row(
        "balloond_dry_run",
        "Whether no VM's balloon is changed: 1 or 0.",
        lambda host: host.dry_run,
    ),
)
"""The host's families, each with the function that reads its samples."""


def _in_need(vm: VmStatus) -> bool | None:
    return None if vm.protection is None else vm.protection.objection is Reason.IN_NEED


def _objection(vm: VmStatus) -> Samples:
    if vm.protection is not None and vm.protection.objection is not None:
        yield (vm.protection.objection.value,), 1


def _last_decision(vm: VmStatus) -> Samples:
    if vm.decided is not None:
        yield (vm.decided.decision.reason.value,), 1


def _steps(vm: VmStatus) -> Samples:
    if vm.policy is not None:
        yield ("up",), vm.policy.counters.steps_up
        yield ("down",), vm.policy.counters.steps_down


VM: tuple[Row[VmStatus], ...] = (
    (
        Family(
            "balloond_vm_info",
            INFO,
            "How a VM's balloon is reached, and the rules for it.",
            ("vm", "kind", "profile", "priority"),
        ),
        lambda vm: (((vm.kind, vm.settings.profile.value, str(vm.settings.priority)), 1),),
    ),
    _vm_row(
        "balloond_vm_size_bytes",
        "The VM's size, its balloon included.",
        _policy(lambda policy: policy.vm_mem_bytes),
    ),
    _vm_row(
        "balloond_vm_balloon_bytes",
        "The balloon's size, as the guest's driver says.",
        lambda vm: vm.balloon_bytes,
    ),
    _vm_row(
        "balloond_vm_target_bytes",
        "The balloon's wanted size.",
        _policy(lambda policy: policy.target_bytes),
    ),
    _vm_row(
        "balloond_vm_balloon_max_bytes",
        "The balloon's greatest size.",
        _policy(lambda policy: policy.max_balloon_bytes),
    ),
    _vm_row(
        "balloond_vm_host_freed_bytes",
        "How much of the balloon the host has got.",
        returned_bytes,
    ),
    _vm_row(
        "balloond_vm_occupied_bytes",
        "How much of the host's memory the VM occupies.",
        lambda vm: vm.held_bytes,
    ),
    _vm_row(
        "balloond_vm_guest_available_bytes",
        "What the guest could have without swapping, as it said last.",
        lambda vm: None if vm.stats is None else vm.stats.available_bytes,
    ),
    _vm_row(
        "balloond_vm_guest_free_bytes",
        "What nothing in the guest uses, as it said last.",
        lambda vm: None if vm.stats is None else vm.stats.free_bytes,
    ),
    _vm_row(
        "balloond_vm_missing_bytes",
        "How much of the balloon the host lacks although it has waited.",
        lambda vm: None if vm.protection is None else vm.protection.missing_bytes,
    ),
    _vm_row(
        "balloond_vm_level",
        "The balloon policy's level, of 16.",
        _policy(lambda policy: policy.level),
    ),
    _vm_row("balloond_vm_in_need", "Whether the guest needs its memory itself: 1 or 0.", _in_need),
    _vm_row(
        "balloond_vm_trouble",
        "Whether the VMM refuses or does not answer: 1 or 0.",
        lambda vm: vm.trouble is not None,
    ),
    _vm_row(
        "balloond_vm_paused",
        "Whether an operator has paused the taking of memory from this VM: 1 or 0.",
        lambda vm: vm.paused_s is not None,
    ),
    (
        Family(
            "balloond_vm_state",
            GAUGE,
            "1 for the guest's present state.",
            ("vm", "state"),
        ),
        lambda vm: (((vm.state.value,), 1),),
    ),
    (
        Family(
            "balloond_vm_objection",
            GAUGE,
            "1 for what is against asking the guest for more now.",
            ("vm", "objection"),
        ),
        _objection,
    ),
    (
        Family(
            "balloond_vm_last_decision",
            GAUGE,
            "1 for the reason of the last decision about the VM.",
            ("vm", "reason"),
        ),
        _last_decision,
    ),
    (
        Family(
            "balloond_vm_steps_total",
            COUNTER,
            "Steps of the balloon policy.",
            ("vm", "direction"),
        ),
        _steps,
    ),
)
"""The families of VMs, each with the function that reads its samples; ``_of_vm`` adds the VM's
name to their labels."""

VM_FAULTS = Family(
    "balloond_vm_faults_total",
    COUNTER,
    "Faults that are about the VM, since it came.",
    ("vm", "event"),
)

BUILD = Family("balloond_build_info", INFO, "The version of this balloond.", ("version",))
SOURCE = Family(
    "balloond_host_source_info", INFO, "Where the figures about low memory are from.", ("source",)
)
VMS = Family("balloond_vms", GAUGE, "VMs whose balloons are driven.")
NOT_DRIVEN = Family(
    "balloond_vm_not_driven",
    GAUGE,
    "1 for a VM whose balloon cannot be driven, and why.",
    ("vm", "fault"),
)
DECISIONS = Family(
    "balloond_decisions_total", COUNTER, "Decisions of the balloon policy.", ("reason",)
)
FAULTS = Family("balloond_faults_total", COUNTER, "Faults, by the log's event words.", ("event",))

PROCESS: tuple[Row[OwnFigures], ...] = (
    _row(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        lambda own: own.resident_bytes,
    ),
    _row(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        lambda own: own.virtual_bytes,
    ),
    _row(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        lambda own: own.cpu_s,
        COUNTER,
    ),
    _row(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        lambda own: own.started_s,
    ),
    _row("process_open_fds", "Number of open file descriptors.", lambda own: own.open_fds),
    _row("process_max_fds", "Maximum number of open file descriptors.", lambda own: own.most_fds),
)
"""The controller's own figures, by the names that all exporters use."""


def families() -> list[Family]:
    """All families, in the order of the text."""
    return [
        BUILD,
        SOURCE,
        *(family for family, _ in HOST),
        DECISIONS,
        FAULTS,
        VMS,
        NOT_DRIVEN,
        *(family for family, _ in VM),
        VM_FAULTS,
        *(family for family, _ in PROCESS),
    ]


class Statuses(Protocol):
    """The questions of ``commands.Desk`` that the metrics ask."""

    def host_status(self) -> HostStatus:
        """The host's last memory reading, and the present state of the sizing policy."""

    def vm_ids(self) -> Sequence[VmId]:
        """The VMs, by their names; those of one name in the order in which they came."""

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        """The present state of a VM; None: there is no such VM any more."""


class Metrics:
    """Makes the text of all metrics, a part at a time.

    Args:
        desk: the controller.
        undriven: gives the VMs whose balloons cannot be driven.
        counters: what was counted.
        own_figures: reads this process's figures.
    """

    def __init__(
        self,
        desk: Statuses,
        undriven: Callable[[], Iterable[Undriven]],
        counters: Counters,
        own_figures: Callable[[], OwnFigures],
    ) -> None:
        self._desk = desk
        self._undriven = undriven
        self._counters = counters
        self._own_figures = own_figures

    def parts(self, *, openmetrics: bool, own: bool = True) -> Iterator[bytes]:
        """The parts of the text, some of them empty: the work for one VM is done in one part.

        Args:
            openmetrics: as OpenMetrics; else in Prometheus' own format.
            own: True: with this process's figures (``process_…``). Not for node_exporter's
                textfile collector: node_exporter has samples of its own with the same names.
        """

        def text(family: Family, lines: str) -> bytes:
            return (family.head(openmetrics=openmetrics) + lines).encode(errors="replace")

        host, counters = self._desk.host_status(), self._counters
        yield text(BUILD, BUILD.lines([((__version__,), 1)]))
        yield text(SOURCE, SOURCE.lines([((host.source.name,), 1)]))
        for family, read in HOST:
            yield text(family, family.lines(read(host)))
        reasons = {reason.value: number for reason, number in counters.decisions.items()}
        yield text(DECISIONS, DECISIONS.lines(_each(reasons)))
        yield text(FAULTS, FAULTS.lines(_each(counters.faults)))
        vm_ids = tuple(self._desk.vm_ids())
        yield text(VMS, VMS.lines([((), len(vm_ids))]))
        # All samples of a family stand together, and each VM is asked once: so each VM's samples
        # are made first.
        lines: dict[Family, list[str]] = {family: [] for family, _ in VM}
        lines[VM_FAULTS] = []
        names = set[str]()
        for vm_id in vm_ids:
            # The VM may have gone since the first part was made.
            if (status := self._desk.vm_status(vm_id)) is not None:
                name = _unique(vm_id, names)
                for family, read_vm in VM:
                    lines[family].append(family.lines(_of_vm(name, read_vm(status))))
                faults = _each(counters.faults_of(vm_id))
                lines[VM_FAULTS].append(VM_FAULTS.lines(_of_vm(name, faults)))
            yield b""
        not_driven: list[str] = []
        for vm in self._undriven():
            not_driven.append(NOT_DRIVEN.lines([((_encodable(vm.name), vm.fault), 1)]))
            yield b""
        yield text(NOT_DRIVEN, "".join(dict.fromkeys(not_driven)))
        for family, made in lines.items():
            yield text(family, "".join(made))
        if own:
            figures = self._own_figures()
            for family, read_own in PROCESS:
                yield text(family, family.lines(read_own(figures)))
        if openmetrics:
            yield b"# EOF\n"


def _each(counted: dict[str, int]) -> Samples:
    return (((label,), number) for label, number in sorted(counted.items()))


def _of_vm(name: str, samples: Samples) -> Samples:
    return (((name, *values), value) for values, value in samples)


def _unique(vm: VmId, names: set[str]) -> str:
    """A VM's name, with its number if another VM has that name: two samples with the same labels
    make Prometheus refuse them.

    Args:
        vm: the VM.
        names: the names that other VMs have got; this VM's name is added.
    """
    name = _encodable(vm.name)
    while name in names:
        name += f"#{vm.number}"
    names.add(name)
    return name


def _encodable(name: str) -> str:
    """A name with ``?`` for each character that UTF-8 cannot encode (a lone surrogate): two names
    that differ only in such characters become equal."""
    return name.encode(errors="replace").decode()


def wants_openmetrics(accept: str) -> bool:
    """Whether a client prefers OpenMetrics to Prometheus' own format.

    Args:
        accept: the value of the header Accept (RFC 9110, section 12.5.1); "": there is none.
    """
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for one in accept.lower().split(",", MOST_ACCEPTED)[:MOST_ACCEPTED]:
        media, *parameters = (part.strip() for part in one.split(";", MOST_ACCEPTED))
        said = dict(part.partition("=")[::2] for part in parameters)
        old = media != "text/plain" and said.get("version", "1.0.0").strip('"') != "1.0.0"
        if media in weights and not old:
            try:
                weight = float(said.get("q", "1"))
            except ValueError:
                continue
            weights[media] = max(weights[media], weight)
    openmetrics, text = weights.values()
    return openmetrics > 0 and openmetrics >= text

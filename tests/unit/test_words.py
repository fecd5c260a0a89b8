"""The log's words: each event's level, event word, sentence and fields, once.

Every class of events has to stand here: whoever adds one words it here too.
"""

from typing import get_args

import pytest

from balloon_daemon.errors import NO_HEAD, Rule
from balloon_daemon.events import (
    AlreadyConnected,
    ApiClientTooSlow,
    ApiListening,
    ApiMisused,
    ApiNotOpened,
    BalloonContested,
    BalloonFound,
    BalloonFreed,
    BalloonMissing,
    BalloonNotFreed,
    BalloonSought,
    BaseFound,
    BasesNotStored,
    BasesPathTaken,
    CallbackFailed,
    ConfigMistake,
    ConfigRefused,
    ConfigReloaded,
    Connected,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionRefused,
    Death,
    Decided,
    DeviceDied,
    DeviceDoesNotStop,
    DeviceHangs,
    DeviceLooks,
    DeviceNotForked,
    DeviceReady,
    DeviceSendsGarbage,
    DevicesShareUser,
    DeviceStalled,
    DeviceStarted,
    DeviceTakesOrders,
    DirectoryHangs,
    DirectoryNotListed,
    Disconnected,
    DomainsNotFound,
    DrivesOthers,
    DryRunBegins,
    Event,
    EventsLost,
    Fault,
    FinderFailed,
    Fruitless,
    GivenBackLater,
    GivesHugePages,
    GivingBack,
    GuestFault,
    GuestInNeed,
    GuestStats,
    HistoryEnded,
    HistorySetAside,
    HostFault,
    KeeperUnreachable,
    LinesLost,
    Listening,
    LossCause,
    MemoryKnown,
    MemoryNeverFreed,
    MemoryNotFreeable,
    MemoryNotGivenBack,
    MemoryNotShared,
    MemoryOutOfReach,
    MetricsFileEnded,
    MetricsListening,
    MetricsNotWritten,
    NoBackendChannel,
    NoDriverYet,
    NotAccepted,
    NotGivenBack,
    NothingFreeable,
    NotStored,
    PageKind,
    PagesLost,
    PolicyFileWarning,
    ProcessNotSeen,
    ReaderFailed,
    ReclaimBegan,
    ReclaimEnded,
    RecordingEnded,
    Refilled,
    ReportsNotFreed,
    RequestNotServed,
    ReserveBegan,
    ReserveEnded,
    ReserveMet,
    ReserveNotMet,
    RingsUnknown,
    Share,
    SizeAsked,
    SizesDiffer,
    SocketIgnored,
    SocketNotOpened,
    SocketNotPrivate,
    SocketUnitNotServed,
    SourceKnown,
    SourceOff,
    SourceOn,
    SourceTrouble,
    SourceUnknown,
    SqueezeStalled,
    StateRefused,
    Stepped,
    StillToGiveBack,
    Stopping,
    StoppingAtOnce,
    StoreLost,
    StoreShareUsed,
    StoreStalled,
    Surveyed,
    TakenOver,
    TakingPaused,
    TakingResumed,
    TargetReached,
    TargetWithheld,
    TemplateLost,
    TemplateStarted,
    TmpfsLimited,
    TraceBegun,
    UserIgnored,
    VmAttached,
    VmDoesNotEnd,
    VmDriven,
    VmFailed,
    VmFound,
    VmLetGo,
    VmLost,
    VmmHungUp,
    VmmRefuses,
    VmNotDriven,
    VmNotServed,
    VmNotSought,
    VmNotWanted,
    VmResized,
)
from balloon_daemon.records.line import Level
from balloon_daemon.records.words import is_debug, worded
from balloon_daemon.sizing.balloon_policy import PolicyState
from balloon_daemon.sizing.decision import Decision, Ended, Missing, Reading, Reason, Sign
from balloon_daemon.sizing.host_events import Found, Removed
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.units import GIB, MIB, VmId

DEBUG, INFO, WARNING, ERROR = Level.DEBUG, Level.INFO, Level.WARNING, Level.ERROR
VM = VmId(3, "vm3")
LOW = Reading(399, 400)
REMEDY = (
    "give the VM memory that can be freed: memory-backend-memfd, or a file on tmpfs, with share=on"
)
Row = tuple[Event, Level, str, str, dict[str, object]]
"""An event; its level, event word, message, and fields but for ``vm``."""


def died(code: int, death: Death, by: str = "", last_words: str = "", deaths: int = 0) -> Event:
    return DeviceDied(VM, 12, code, death, by, last_words, deaths, 60.0)


DEVICES: list[Row] = [
    (
        DeviceStarted(VM, 12, ("inflateq", "deflateq")),
        INFO,
        "device-started",
        "device 12 serves inflateq, deflateq",
        {"pid": 12, "queues": ("inflateq", "deflateq")},
    ),
    (
        DeviceLooks(VM, 12, ("inflateq",)),
        INFO,
        "device-looks",
        "device 12 only reads how far these rings are: inflateq",
        {"pid": 12, "queues": ("inflateq",)},
    ),
    (
        ReportsNotFreed(VM, 0xAAAAAAAA),
        INFO,
        "reports-not-freed",
        "the guest's kernel fills free pages with 0xaaaaaaaa and may look for that later "
        "(page_poison=1): free pages that it reports are not taken from it; the balloon gives its "
        "memory back as ever",
        {"poison_val": 0xAAAAAAAA},
    ),
    (DeviceReady(VM), DEBUG, "device-ready", "device is jailed and ready", {}),
    (
        DeviceNotForked(VM, "Too many open files"),
        ERROR,
        "device-not-forked",
        "cannot fork a device: Too many open files; trying again",
        {"error": "Too many open files", "suppressed": 0},
    ),
    (
        died(-9, Death.SIGNAL, "SIGKILL"),
        ERROR,
        "device-died",
        "device 12 was killed by SIGKILL; forking another",
        {
            "pid": 12,
            "exit_code": -9,
            "death": "signal",
            "by": "SIGKILL",
            "deaths": 0,
            "within_s": 60.0,
        },
    ),
    (
        DeviceDoesNotStop(VM, 12),
        WARNING,
        "device-does-not-stop",
        "device 12 was told to stop and has not: killing it",
        {"pid": 12},
    ),
    (
        DeviceHangs(VM, 12),
        ERROR,
        "device-hangs",
        "device 12 was killed and does not end: the kernel is still busy with it",
        {"pid": 12},
    ),
    (
        DeviceSendsGarbage(VM, 12, "report of kind 9 with 53 bytes"),
        ERROR,
        "device-sends-garbage",
        "device 12 sends what no device sends: report of kind 9 with 53 bytes; its guest may have "
        "taken it over: killing it",
        {"pid": 12, "found": "report of kind 9 with 53 bytes"},
    ),
    (
        DeviceStalled(VM, 12),
        WARNING,
        "device-stalled",
        "device 12 takes no orders: somebody has stopped it, or the host has no time for it; its "
        "VM gives nothing and gets nothing back meanwhile",
        {"pid": 12},
    ),
    (
        DeviceTakesOrders(VM, 12),
        INFO,
        "device-takes-orders",
        "device 12 takes orders again",
        {"pid": 12},
    ),
    (
        RingsUnknown(VM, 3),
        ERROR,
        "rings-unknown",
        "no device could read how far its rings are (used.idx): its VMM is told what was known "
        "last (3 more like it)",
        {"suppressed": 3},
    ),
    (
        GuestFault(VM, "inflateq", Rule.PFN, 0x1000, 7, stops_queue=False, suppressed=2),
        WARNING,
        "guest-fault",
        "inflateq: chain 7 names PFN 0x1000, outside guest memory; dropped (2 more like it)",
        {
            "queue": "inflateq",
            "rule": "pfn",
            "found": 0x1000,
            "head": 7,
            "stops_queue": False,
            "suppressed": 2,
        },
    ),
    (
        HostFault(VM, 0x1000, 1),
        ERROR,
        "host-fault",
        "the kernel refused to free guest memory at 0x1000 (MADV_REMOVE: EPERM)",
        {"addr": 0x1000, "errno": 1, "suppressed": 0},
    ),
    (
        GuestStats(VM, (("memtot", 5), ("77", 6))),
        DEBUG,
        "guest-stats",
        "the guest's statistics",
        {"stat_memtot": 5, "stat_77": 6},
    ),
]

MEMORY: list[Row] = [
    (
        MemoryKnown(VM, GIB, frozenset([PageKind(2 * MIB, "never"), PageKind(4096, "advise")])),
        INFO,
        "memory-known",
        "guest memory of 1 GiB: 4 KiB pages, transparent huge pages where the VMM asks for them; "
        "hugetlbfs pages of 2 MiB",
        {
            "size_bytes": GIB,
            "pages": [
                "4 KiB pages, transparent huge pages where the VMM asks for them",
                "hugetlbfs pages of 2 MiB",
            ],
        },
    ),
    (
        MemoryNeverFreed(VM, MIB, 0x1000, "is private", 248),
        INFO,
        "memory-never-freed",
        "1 MiB at 0x1000 are never freed: their file is private; nor are 248 further regions",
        {"size_bytes": MIB, "guest_addr": 0x1000, "why": "is private", "others": 248},
    ),
    (
        NothingFreeable(VM),
        WARNING,
        "nothing-freeable",
        f"nothing of its memory can be freed: this VM gets no balloon; {REMEDY}",
        {},
    ),
    (
        GivesHugePages(VM),
        WARNING,
        "gives-huge-pages",
        "huge pages that it gives up go to the host's pool, not to available memory; if the pool "
        "has none left when it takes them back, its VMM dies of SIGBUS; keep as many free there, "
        "or give the VM memory of small pages",
        {},
    ),
    (
        TmpfsLimited(VM, 2 * GIB, GIB),
        WARNING,
        "tmpfs-limited",
        "guest memory is a file on a tmpfs with a limit of 2 GiB (1 GiB free): if other files "
        "there take what the guest gives up, its VMM dies of SIGBUS when the guest takes it back; "
        "use memory-backend-memfd, or a tmpfs without a limit",
        {"limit_bytes": 2 * GIB, "free_bytes": GIB},
    ),
    (
        MemoryNotShared(VM, driver_runs=True),
        WARNING,
        "memory-not-shared",
        "its VMM is connected but has not given its guest's memory so far: the memory is not "
        "shared (QEMU: share=on for the memory back-end; libvirt: <access mode='shared'/>); until "
        "then it has no balloon",
        {"driver_runs": True},
    ),
    (
        MemoryOutOfReach(VM),
        WARNING,
        "memory-out-of-reach",
        "part of its memory lies at 16 TiB or above, where a balloon's page numbers of 32 bits do "
        "not reach: this VM gets no balloon",
        {},
    ),
    (
        MemoryNotFreeable(VM),
        WARNING,
        "memory-not-freeable",
        f"none of its memory can be freed: this VM gets no balloon; {REMEDY}",
        {},
    ),
    (
        SizesDiffer(VM, 2 * GIB, 5 * GIB, GIB, GIB),
        WARNING,
        "sizes-differ",
        "--vm-mem says 2 GiB, the VMM's memory table says 5 GiB, the guest says 1 GiB; going by "
        "the guest",
        {
            "flag_bytes": 2 * GIB,
            "table_bytes": 5 * GIB,
            "guest_bytes": GIB,
            "size_bytes": GIB,
        },
    ),
    (
        PagesLost(VM, LossCause.REFUSED, MIB),
        WARNING,
        "pages-lost",
        "1 MiB that it gave are not freed: the kernel refused (the event host-fault says why)",
        {"cause": "refused", "lost_bytes": MIB, "reasons": (), "out_of_reach": False},
    ),
    (
        Fruitless(VM),
        WARNING,
        "fruitless",
        "less than half of what it gave last was freed: not asking it for more",
        {},
    ),
    (
        BalloonNotFreed(VM, MIB),
        WARNING,
        "balloon-not-freed",
        "the host has not got 1 MiB of its balloon: the VM's memory files hold them still (huge "
        "pages given up in parts, pages pinned for a device, or a copy that something else "
        "reads); not asking it for more",
        {"missing_bytes": MIB},
    ),
]

VMS: list[Row] = [
    (
        VmmHungUp(VM),
        INFO,
        "vmm-hung-up",
        "the VMM has closed its connection; its balloon is forgotten",
        {"suppressed": 0},
    ),
    (
        ConnectionClosed(VM, "GET_CONFIG: 3 bytes", 8),
        ERROR,
        "connection-closed",
        "GET_CONFIG: 3 bytes; closing this connection (8 more connections have ended)",
        {"why": "GET_CONFIG: 3 bytes", "suppressed": 8},
    ),
    (
        ConnectionFailed(VM, "No buffer space available"),
        ERROR,
        "connection-failed",
        "the VMM's connection failed: No buffer space available",
        {"error": "No buffer space available", "suppressed": 0},
    ),
    (
        AlreadyConnected(VM, 1000, suppressed=2),
        ERROR,
        "already-connected",
        "a connection of user 1000 is refused, as the VM is connected already: give each VM a "
        "socket of its own (2 more like it)",
        {"uid": 1000, "suppressed": 2},
    ),
    (
        DrivesOthers(1, ("qemu:///system", "/run/*.qmp")),
        INFO,
        "drives-others",
        "driving the balloons of 1 named VM and of all VMs at qemu:///system and of all VMs at "
        "/run/*.qmp",
        {"named": 1, "places": ("qemu:///system", "/run/*.qmp")},
    ),
    (
        SocketNotOpened("web", "socket /run/web.sock: there is something else; name another path"),
        ERROR,
        "socket-not-opened",
        "the VM web cannot attach: socket /run/web.sock: there is something else; name another "
        "path; then restart balloond",
        {
            "name": "web",
            "why": "socket /run/web.sock: there is something else; name another path",
        },
    ),
    (
        RequestNotServed(VM, "SET_VRING_NUM: 3 is no power of two"),
        WARNING,
        "request-not-served",
        "SET_VRING_NUM: 3 is no power of two",
        {"why": "SET_VRING_NUM: 3 is no power of two"},
    ),
    (
        VmNotServed(VM, "its memory is unknown"),
        ERROR,
        "vm-not-served",
        "its memory is unknown: this VM gets no balloon",
        {"why": "its memory is unknown"},
    ),
    (
        NoBackendChannel(VM),
        WARNING,
        "no-backend-channel",
        "the VMM gives no back-end channel (SET_BACKEND_REQ_FD), by which its guest would be told "
        "of a new target: use a VMM that gives one",
        {},
    ),
    (
        VmAttached(VM, 2 * GIB, GIB, 16),
        INFO,
        "vm-attached",
        "VM of 2 GiB, balloon of at most 1 GiB in 16 steps",
        {"vm_mem_bytes": 2 * GIB, "max_balloon_bytes": GIB, "steps": 16},
    ),
    (
        VmResized(VM, 0, 0, 16),
        INFO,
        "vm-resized",
        "VM without a balloon",
        {"vm_mem_bytes": 0, "max_balloon_bytes": 0, "steps": 16},
    ),
    (
        BalloonSought(VM),
        INFO,
        "balloon-sought",
        "its driver ran before balloond did: finding out its balloon's size",
        {},
    ),
    (
        BalloonFound(VM, MIB),
        INFO,
        "balloon-found",
        "its balloon is 1 MiB",
        {"actual_bytes": MIB},
    ),
    (
        Decided(VM, Decision(Reason.LOW_MEMORY, 0, 1, 16, 192 * MIB, LOW)),
        INFO,
        "decided",
        "low memory (399 MiB available, margin 400 MiB): balloon grows to level 1/16, 192 MiB",
        {
            "reason": "low-memory",
            "balloon_level": 1,
            "target_bytes": 192 * MIB,
            "available_mib": 399,
            "margin_mib": 400,
        },
    ),
    (
        TargetWithheld(VM, 192 * MIB),
        INFO,
        "target-withheld",
        "dry run: a target of 192 MiB is not sent",
        {"target_bytes": 192 * MIB},
    ),
    (
        TargetReached(VM, 8 * MIB, 0),
        INFO,
        "target-reached",
        "balloon is 8 MiB",
        {"actual_bytes": 8 * MIB, "missing_bytes": 0},
    ),
    (TakenOver(VM), INFO, "taken-over", "goes on where another balloond left", {}),
    (
        StateRefused(VM, "is damaged"),
        ERROR,
        "state-refused",
        "the state that another balloond left is damaged; closing its VMM's connection: it has no "
        "balloon until it is started again",
        {"why": "is damaged"},
    ),
    (
        NotStored(VM, "Too many open files", 1),
        ERROR,
        "not-stored",
        "cannot be kept for a later balloond: Too many open files (1 more like it)",
        {"error": "Too many open files", "suppressed": 1},
    ),
    (
        StoreShareUsed(VM, 1000, 11),
        ERROR,
        "store-share-used",
        "is not kept for a later balloond: 11 VMs of user 1000 are, as many as one user's may",
        {"uid": 1000, "vms": 11, "suppressed": 0},
    ),
    (
        StoreStalled(VM, "the store has taken nothing for 2 s"),
        ERROR,
        "store-stalled",
        "the store has taken nothing for 2 s; its VMM is answered all the same: should balloond "
        "be killed now, this VM may lose its balloon",
        {"why": "the store has taken nothing for 2 s"},
    ),
    (
        GivingBack(VM, MIB),
        INFO,
        "giving-back",
        "giving 1 MiB back to the guest",
        {"balloon_bytes": MIB},
    ),
    (
        StillToGiveBack(VM, MIB),
        INFO,
        "still-to-give-back",
        "1 MiB are still to be given back",
        {"left_bytes": MIB},
    ),
    (
        NotGivenBack(VM, MIB),
        WARNING,
        "not-given-back",
        "1 MiB were not taken back, and stay in a balloon that nobody serves now",
        {"left_bytes": MIB},
    ),
    (
        SizeAsked(VM, 1000, 512 * MIB, 600.0),
        INFO,
        "size-asked",
        "user 1000 asks for a balloon of 512 MiB for 600 s",
        {"uid": 1000, "balloon_bytes": 512 * MIB, "for_s": 600.0},
    ),
    (
        TakingPaused(VM, 1000, 600.0),
        INFO,
        "taking-paused",
        "user 1000 pauses: nothing more is taken from this VM for 600 s",
        {"uid": 1000, "for_s": 600.0},
    ),
    (
        TakingResumed(VM, 1000),
        INFO,
        "taking-resumed",
        "the pause is over: user 1000 ends it",
        {"uid": 1000},
    ),
    (
        VmDoesNotEnd(VM),
        ERROR,
        "vm-does-not-end",
        "its task in balloond does not end: ending without it",
        {},
    ),
    (
        VmFailed(VM, "KeyError: 1"),
        ERROR,
        "vm-failed",
        "unexpected error in balloond: KeyError: 1",
        {"error": "KeyError: 1"},
    ),
    (
        ReclaimBegan(1000, 512 * MIB, "web, db", 30.0),
        INFO,
        "reclaim-began",
        "user 1000 asks for 512 MiB from web, db within 30 s",
        {"uid": 1000, "wanted_bytes": 512 * MIB, "vms": "web, db", "within_s": 30.0},
    ),
    (
        ReclaimEnded(1000, 512 * MIB, 96 * MIB, 2.04, Ended.NOBODY),
        INFO,
        "reclaim-ended",
        "96 MiB of 512 MiB came in 2.0 s: no VM can give more",
        {
            "uid": 1000,
            "wanted_bytes": 512 * MIB,
            "came_bytes": 96 * MIB,
            "took_s": 2.04,
            "why": "nobody",
        },
    ),
    (
        ReserveBegan(1000, 2 * GIB, 600.0),
        INFO,
        "reserve-began",
        "user 1000 reserves 2 GiB above the margin for 600 s",
        {"uid": 1000, "size_bytes": 2 * GIB, "for_s": 600.0},
    ),
    (
        ReserveMet(1000, 2 * GIB, 12.34),
        INFO,
        "reserve-met",
        "2 GiB that were reserved are there after 12.3 s",
        {"uid": 1000, "size_bytes": 2 * GIB, "took_s": 12.34},
    ),
    (
        ReserveNotMet(1000, 2 * GIB, 1200, 2448, Ended.TIME),
        WARNING,
        "reserve-not-met",
        "2 GiB that were reserved are not there, 1,200 of 2,448 MiB are available: the time is "
        "over",
        {
            "uid": 1000,
            "size_bytes": 2 * GIB,
            "available_mib": 1200,
            "needed_mib": 2448,
            "why": "time",
        },
    ),
    (
        ReserveEnded(1000, 2 * GIB, Ended.WITHDRAWN),
        INFO,
        "reserve-ended",
        "the reserve of 2 GiB is over: it was ended",
        {"uid": 1000, "size_bytes": 2 * GIB, "why": "withdrawn"},
    ),
]

DAEMON: list[Row] = [
    (
        Listening("/run/balloond.sock"),
        INFO,
        "listening",
        "listening on /run/balloond.sock",
        {"socket": "/run/balloond.sock"},
    ),
    (
        ApiListening("/run/api.sock", "balloond"),
        INFO,
        "api-listening",
        "the API listens on /run/api.sock; members of the group balloond may read",
        {"socket": "/run/api.sock", "group": "balloond"},
    ),
    (
        MetricsListening("127.0.0.1:9710"),
        INFO,
        "metrics-listening",
        "metrics can be read at http://127.0.0.1:9710/metrics",
        {"address": "127.0.0.1:9710"},
    ),
    (
        MetricsFileEnded("No space left on device"),
        WARNING,
        "metrics-file-ended",
        "no more is written to the file of --metrics: No space left on device",
        {"why": "No space left on device"},
    ),
    (
        MetricsNotWritten(5 << 20, 4 << 20),
        WARNING,
        "metrics-not-written",
        "the file of --metrics keeps its old figures, as new ones cannot be written: they are "
        "5 MiB, and it takes 4 MiB: have Prometheus ask the API or a port (docs/metrics.md)",
        {"text_bytes": 5 << 20, "most_bytes": 4 << 20},
    ),
    (
        ApiNotOpened("h11 is not installed"),
        WARNING,
        "api-not-opened",
        "there is no API: h11 is not installed",
        {"why": "h11 is not installed"},
    ),
    (
        ApiMisused(1000, closed=True),
        WARNING,
        "api-misused",
        "the API: user 1000 has sent file descriptors; its connection is dropped, and from now on "
        "the socket is root's and balloond's own user's alone",
        {"uid": 1000, "closed": True},
    ),
    (
        ApiClientTooSlow(1000, 32 * MIB, 7),
        WARNING,
        "api-client-too-slow",
        "the API: user 1000 takes an answer too slowly while more than 32 MiB of answers wait; "
        "its connection is dropped (7 more like it)",
        {"uid": 1000, "most_bytes": 32 * MIB, "suppressed": 7},
    ),
    (
        Stopping("SIGTERM", vms_stay=False),
        INFO,
        "stopping",
        "SIGTERM: ending",
        {"signal": "SIGTERM", "vms_stay": False},
    ),
    (
        StoppingAtOnce("SIGINT"),
        INFO,
        "stopping-at-once",
        "SIGINT again: ending at once",
        {"signal": "SIGINT"},
    ),
    (
        MemoryNotGivenBack(2),
        WARNING,
        "memory-not-given-back",
        "2 guests have not taken all of their memory back in time",
        {"vms": 2},
    ),
    (
        SocketUnitNotServed("balloond.socket", "/run/a.sock"),
        WARNING,
        "socket-unit-not-served",
        "balloond.socket listens on /run/a.sock, which no setting names, so that whoever connects "
        "there waits for ever: name it (socket, api, vhost_user), or stop that unit",
        {"unit": "balloond.socket", "socket": "/run/a.sock"},
    ),
    (
        SocketNotPrivate("anybody may write to it"),
        WARNING,
        "socket-not-private",
        "anybody may write to it",
        {"risk": "anybody may write to it"},
    ),
    (
        PolicyFileWarning("a.policy:1:2: odd"),
        WARNING,
        "policy-file-warning",
        "a.policy:1:2: odd",
        {"problem": "a.policy:1:2: odd"},
    ),
    (
        DevicesShareUser("nobody"),
        WARNING,
        "devices-share-user",
        "devices run as nobody, as whom other programs run too, and any of those may stop or "
        "kill them: make a user balloond (systemd-sysusers with systemd/balloond.sysusers), or "
        "name another (--user)",
        {"user": "nobody"},
    ),
    (
        UserIgnored("vms"),
        WARNING,
        "user-ignored",
        "--user vms has no effect, as only root can give devices another user: they run as the "
        "user who starts balloond; leave it out, or start balloond as root",
        {"user": "vms"},
    ),
    (
        KeeperUnreachable("process 9 does not answer"),
        ERROR,
        "keeper-unreachable",
        "process 9 does not answer; no VM is kept for a later balloond, and those that it keeps "
        "have no balloon until they are started again: end that process and restart balloond",
        {"why": "process 9 does not answer"},
    ),
    (
        StoreLost(),
        ERROR,
        "store-lost",
        "the store (systemd's, or a keeper), which keeps the VMs for a later balloond, is gone: "
        "should this one end, they have no balloon until they are started again",
        {},
    ),
    (
        NotAccepted("Too many open files"),
        ERROR,
        "not-accepted",
        "cannot take a VMM's connection: Too many open files; trying again",
        {"error": "Too many open files"},
    ),
    (
        ConnectionRefused(1000, Share.USERS_CONNECTIONS, 768, 768),
        ERROR,
        "connection-refused",
        "a connection of user 1000 is refused: it has 768 connections, as many as one user may "
        "have",
        {
            "uid": 1000,
            "share": "users-connections",
            "taken": 768,
            "most": 768,
            "closing": 0,
            "suppressed": 0,
        },
    ),
    (
        SourceUnknown("the margin", "no file"),
        WARNING,
        "source-unknown",
        "the margin is unknown: no file",
        {"figure": "the margin", "why": "no file"},
    ),
    (
        SourceKnown("the margin", 3),
        WARNING,
        "source-known",
        "the margin is known again, after 3 failed reads",
        {"figure": "the margin", "failed_reads": 3},
    ),
    (
        SourceOff("margin says off"),
        WARNING,
        "source-off",
        "low memory is switched off (margin says off): nothing is low, balloons are given back",
        {"why": "margin says off"},
    ),
    (
        SourceOn(1400),
        WARNING,
        "source-on",
        "low memory is switched on again, with a margin of 1,400 MiB",
        {"margin_mib": 1400},
    ),
    (
        SourceTrouble("no MemAvailable, it is estimated"),
        WARNING,
        "source-trouble",
        "no MemAvailable, it is estimated",
        {"what": "no MemAvailable, it is estimated"},
    ),
    (
        TemplateLost("process 9 is gone"),
        WARNING,
        "template-lost",
        "process 9 is gone",
        {"why": "process 9 is gone"},
    ),
    (
        TemplateStarted("process 9 forks devices now"),
        INFO,
        "template-started",
        "process 9 forks devices now",
        {"what": "process 9 forks devices now"},
    ),
    (
        CallbackFailed("KeyError: 1"),
        ERROR,
        "callback-failed",
        "unexpected error in balloond: KeyError: 1; going on",
        {"error": "KeyError: 1"},
    ),
    (
        ReaderFailed("StoreLost", "KeyError: 1"),
        ERROR,
        "reader-failed",
        "unexpected error in balloond: KeyError: 1; an event StoreLost may be missing in the log, "
        "the API or a file; going on",
        {"event": "StoreLost", "error": "KeyError: 1"},
    ),
    (
        EventsLost(1),
        WARNING,
        "events-lost",
        "1 event came too fast to be written: lost",
        {"lost": 1},
    ),
    (
        LinesLost(2),
        WARNING,
        "lines-lost",
        "2 lines could not be written here (a full disk, or a slow reader): lost",
        {"lost": 2},
    ),
    (
        ConfigReloaded(tuple(f"[vm.a{n}]: added" for n in range(10))),
        INFO,
        "config-reloaded",
        "the configuration is read anew: "
        + "; ".join(f"[vm.a{n}]: added" for n in range(8))
        + "; and 2 more",
        {"changed": tuple(f"[vm.a{n}]: added" for n in range(10))},
    ),
    (
        ConfigMistake("a.toml:3: [host] margin: it is wrong"),
        ERROR,
        "config-mistake",
        "a.toml:3: [host] margin: it is wrong",
        {"mistake": "a.toml:3: [host] margin: it is wrong"},
    ),
    (
        ConfigRefused(7),
        ERROR,
        "config-refused",
        "the configuration has 7 mistakes: the one before stays in force, whole",
        {"mistakes": 7},
    ),
    (
        DryRunBegins(),
        WARNING,
        "dry-run-begins",
        "dry run: decides and logs, and changes no VM's balloon",
        {},
    ),
    (
        HistorySetAside("it is damaged", ".damaged.2"),
        WARNING,
        "history-set-aside",
        "the file of --history cannot be used (it is damaged): renamed to end in .damaged.2, a "
        "new one begins",
        {"why": "it is damaged", "ending": ".damaged.2"},
    ),
    (
        HistoryEnded("unable to open database file"),
        WARNING,
        "history-ended",
        "no more is written to the file of --history: unable to open database file",
        {"why": "unable to open database file"},
    ),
    (
        RecordingEnded("No space left on device"),
        WARNING,
        "recording-ended",
        "the trace of --record ends here: No space left on device",
        {"why": "No space left on device"},
    ),
]

DRIVEN: list[Row] = [
    (VmLetGo(VM), INFO, "vm-let-go", "is driven no more", {}),
    (
        VmNotWanted("web"),
        INFO,
        "vm-not-wanted",
        "web: the configuration has it no more: it gets its memory back, and is left alone",
        {"name": "web"},
    ),
    (
        VmNotSought("web"),
        DEBUG,
        "vm-not-sought",
        "web: its socket or domain is gone; not looked for any more",
        {"name": "web"},
    ),
    (
        VmNotDriven("web", "/run/web.qmp", Fault.HELD, "no greeting"),
        ERROR,
        "vm-not-driven",
        "web: /run/web.qmp: another program holds the VMM's only connection; give balloond a "
        "monitor of its own, or drive the VM by way of that program (no greeting)",
        {
            "name": "web",
            "address": "/run/web.qmp",
            "fault": "held",
            "detail": "no greeting",
        },
    ),
    (
        VmDriven(VM, "/run/web.qmp", GIB, 77, uid=1000),
        INFO,
        "vm-driven",
        "VM of 1 GiB, driven by way of /run/web.qmp",
        {"address": "/run/web.qmp", "vm_mem_bytes": GIB, "pid": 77, "uid": 1000},
    ),
    (
        VmLost(VM, Fault.HANGS),
        ERROR,
        "vm-lost",
        "the VMM does not answer; not driven for now",
        {"fault": "hangs"},
    ),
    (
        ProcessNotSeen(VM, 4711),
        WARNING,
        "process-not-seen",
        "its VMM's process 4711 may not be looked at: an assigned device (VFIO), for which a "
        "balloon frees nothing, would not be seen, nor are disk reads; run balloond as root or as "
        "the VM's user, or give its service CAP_SYS_PTRACE",
        {"pid": 4711},
    ),
    (
        VmmRefuses(VM, "no such command"),
        WARNING,
        "vmm-refuses",
        "the VMM refuses, and the balloon stays as it is (no such command)",
        {"detail": "no such command"},
    ),
    (
        NoDriverYet(VM),
        INFO,
        "no-driver-yet",
        "no balloon driver listens in the guest; waiting for one",
        {},
    ),
    (
        BaseFound(VM, GIB),
        INFO,
        "base-found",
        "has a balloon of 1 GiB that is not balloond's, and keeps it",
        {"base_bytes": GIB},
    ),
    (
        Refilled(VM, GIB),
        WARNING,
        "refilled",
        "its VMM has read all of its memory (migration, snapshot): 1 GiB that its balloon had "
        "freed occupy memory again; giving the balloon back, to take it again in steps",
        {"refilled_bytes": GIB},
    ),
    (
        GivenBackLater(VM, GIB),
        INFO,
        "given-back-later",
        "is paused or suspended, and takes 1 GiB back when it goes on",
        {"left_bytes": GIB},
    ),
    (
        BasesNotStored("No space left on device"),
        WARNING,
        "bases-not-stored",
        "cannot store which balloons were there before balloond: No space left on device; after "
        "a crash the next balloond would not give back what this one has taken",
        {"error": "No space left on device"},
    ),
    (
        BasesPathTaken("/run/balloond/socket.bases"),
        WARNING,
        "bases-path-taken",
        "cannot store which balloons were there before balloond, as /run/balloond/socket.bases is "
        "no regular file: remove it; after a crash the next balloond would not give back what "
        "this one has taken",
        {"path": "/run/balloond/socket.bases"},
    ),
    (
        SocketIgnored("/run/notes.qmp"),
        DEBUG,
        "socket-ignored",
        "/run/notes.qmp is no socket; ignored",
        {"path": "/run/notes.qmp"},
    ),
    (
        DirectoryNotListed("/run/vms", "Permission denied"),
        WARNING,
        "directory-not-listed",
        "/run/vms: Permission denied; make it, and let balloond's user list it, for VMs to be "
        "found there",
        {"path": "/run/vms", "why": "Permission denied"},
    ),
    (
        DirectoryHangs("/run/vms"),
        ERROR,
        "directory-hangs",
        "/run/vms: new VMs are not found there: looking a name up takes too long: the file system "
        "does not answer, or another user keeps a directory on the way busy; use a directory that "
        "only the VM's user may list",
        {"path": "/run/vms"},
    ),
    (
        DomainsNotFound("qemu:///system", Fault.HANGS, "no answer"),
        ERROR,
        "domains-not-found",
        "domains of qemu:///system: the VMM does not answer (no answer)",
        {"uri": "qemu:///system", "fault": "hangs", "detail": "no answer"},
    ),
    (
        FinderFailed("web", "KeyError: 1"),
        ERROR,
        "finder-failed",
        "web: unexpected error in balloond: KeyError: 1; trying again",
        {"name": "web", "error": "KeyError: 1"},
    ),
]

SILENT: list[Event] = [
    Connected(VM, 1000),
    Disconnected(VM),
    Stepped(1.0, Removed(VM)),
    Surveyed(1.0, None),
    TraceBegun(1.0, 1, None),
    VmFound(1.0, 1, Found(VM, GIB, PolicyState(), 0, Terms(), 0, None, None)),
]

PROTECTION: list[Row] = [
    (
        GuestInNeed(VM, (Sign.FAULTS, Sign.READS_DISK), 256 * MIB, 60.0),
        WARNING,
        "guest-in-need",
        "in need (major-faults, reads-disk): giving 256 MiB back, and leaving it alone for 60 s",
        {
            "signs": ("major-faults", "reads-disk"),
            "balloon_bytes": 256 * MIB,
            "left_alone_s": 60.0,
        },
    ),
    (
        SqueezeStalled(VM, 192 * MIB, 160 * MIB, 120.0),
        WARNING,
        "squeeze-stalled",
        "gives no more: stopping at 160 MiB of 192 MiB, and asking for no more for 120 s",
        {"target_bytes": 192 * MIB, "balloon_bytes": 160 * MIB, "left_alone_s": 120.0},
    ),
    (
        BalloonContested(VM, 160 * MIB, 400 * MIB, 60.0),
        WARNING,
        "balloon-contested",
        "somebody else sets its balloon (its balloon is 400 MiB, 160 MiB wanted here): sending no "
        "target for 60 s",
        {"target_bytes": 160 * MIB, "balloon_bytes": 400 * MIB, "left_alone_s": 60.0},
    ),
    (
        BalloonMissing(VM, Missing.REFILLED, GIB, 2 * GIB),
        WARNING,
        "balloon-missing",
        "gave 2 GiB, of which the host has not got 1 GiB: something has read all of its memory in "
        "again, as a migration or a snapshot does; not asking it for more",
        {"cause": "refilled", "missing_bytes": GIB, "balloon_bytes": 2 * GIB},
    ),
    (
        BalloonFreed(VM),
        INFO,
        "balloon-freed",
        "the host has got what was missing of its balloon",
        {},
    ),
]

ROWS = DEVICES + MEMORY + VMS + DAEMON + DRIVEN + PROTECTION


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row[0]).__name__)
def test_event_has_its_level_word_sentence_and_fields(row: Row) -> None:
    event, level, word, message, fields = row
    whose = {"vm": "vm3"} if hasattr(event, "vm") else {}
    assert worded(event) == (level, word, message, whose | fields)
    assert is_debug(event) == (level is DEBUG)


@pytest.mark.parametrize("event", SILENT, ids=lambda event: type(event).__name__)
def test_event_of_which_the_log_says_nothing(event: Event) -> None:
    assert worded(event) is None


def test_every_class_of_events_stands_here_and_has_a_word_of_its_own() -> None:
    here = [type(row[0]) for row in ROWS] + [type(event) for event in SILENT]
    assert sorted(kind.__name__ for kind in here) == sorted(
        kind.__name__ for kind in get_args(Event)
    )
    assert len({row[2] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row[0]).__name__)
def test_no_field_has_the_name_of_one_of_the_lines_own(row: Row) -> None:
    assert not {"time", "level", "message"} & row[4].keys()


def message_of(event: Event) -> str:
    line = worded(event)
    assert line is not None
    return line.message


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            died(-31, Death.FILTER, "madvise"),
            "device 12 was killed by its seccomp policy for madvise(); forking another",
        ),
        (
            died(-31, Death.FILTER),
            "device 12 was killed by its seccomp policy for a forbidden system call; forking "
            "another",
        ),
        (
            died(70, Death.FAILED, "", "balloon-vm3: OSError: no"),
            "device 12 failed; balloon-vm3: OSError: no; forking another",
        ),
        (
            died(1, Death.STATUS, deaths=6),
            "device 12 ended with status 1; the 6th death within 60 s: this VM's balloon stops "
            "until its VMM reconnects (QEMU's: until the VM is started again)",
        ),
        (
            GuestFault(VM, "statsq", Rule.AVAIL_IDX, 900, NO_HEAD, stops_queue=True),
            "statsq: avail.idx jumped 900 ahead, more than its entries allow; the queue is "
            "stopped, until the guest is restarted",
        ),
    ],
)
def test_words_of_deaths_and_faults(event: Event, message: str) -> None:
    assert message_of(event) == message


@pytest.mark.parametrize("fault", list(Fault))
def test_fault_of_a_vmm_has_words_and_none_of_a_quiet_one_for_people(fault: Fault) -> None:
    for event in (VmNotDriven("web", "/run/web", fault), VmLost(VM, fault)):
        assert message_of(event)
        assert not is_debug(event)
        assert is_debug(event._replace(quiet=True))


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            PagesLost(VM, LossCause.NEVER_FREED, MIB, ("is private", "is read-only")),
            f"1 MiB that it gave are not freed, as their file is private, is read-only; {REMEDY}",
        ),
        (
            PagesLost(VM, LossCause.NEVER_FREED, MIB),
            f"1 MiB that it gave are not freed, as their file cannot be freed; {REMEDY}",
        ),
        (
            PagesLost(VM, LossCause.NEVER_FREED, MIB, (), out_of_reach=True),
            "1 MiB that it gave are not freed: part of its memory lies at 16 TiB or above, where "
            "a page number of 32 bits names another page",
        ),
        (
            PagesLost(VM, LossCause.NOT_SHARED, MIB),
            "1 MiB that it gave are in no memory that its VMM shares with balloond, so they "
            "cannot be freed; share all of the VM's memory (share=on for each memory back-end, "
            "plugged ones too)",
        ),
        (
            PagesLost(VM, LossCause.IN_PIECES, MIB),
            "1 MiB that it gave are not freed: they are parts of huge pages, which the kernel "
            "frees only as a whole; give the VM memory of small pages",
        ),
        (
            MemoryNotShared(VM, driver_runs=False),
            "its VMM is connected but has not given its guest's memory so far: its guest has no "
            "balloon driver running yet, or the memory is not shared (QEMU: share=on for the "
            "memory back-end; libvirt: <access mode='shared'/>); until then it has no balloon",
        ),
        (
            MemoryKnown(VM, MIB, frozenset([PageKind(4096, "always"), PageKind(4096, "never")])),
            "guest memory of 1 MiB: 4 KiB pages; 4 KiB pages, transparent huge pages wherever "
            "they fit",
        ),
        (
            SizesDiffer(VM, None, 5 * GIB, GIB, GIB),
            "the VMM's memory table says 5 GiB, the guest says 1 GiB; going by the guest",
        ),
        (
            SizesDiffer(VM, GIB, 4 * GIB, None, GIB),
            "--vm-mem says 1 GiB, the VMM's memory table says 4 GiB; going by --vm-mem",
        ),
        (
            SizesDiffer(VM, 4 * GIB, GIB, None, GIB),
            "--vm-mem says 4 GiB, the VMM's memory table says 1 GiB; going by the VMM's memory "
            "table",
        ),
    ],
)
def test_words_of_memory(event: Event, message: str) -> None:
    assert message_of(event) == message


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (TargetReached(VM, 8 * MIB, MIB), "balloon is 8 MiB, of which the host has 7 MiB"),
        (TargetReached(VM, MIB, 8 * MIB), "balloon is 1 MiB, of which the host has 0 B"),
        (GivingBack(VM, None), "giving all of a balloon of unknown size back to the guest"),
        (GivingBack(VM, 0), "its balloon is empty: the guest is asked for nothing any more"),
        (
            GuestInNeed(VM, (Sign.TOOK_BACK,), 0, 60.0),
            "in need (took-back): its balloon is empty; asking for nothing, and leaving it alone "
            "for 60 s",
        ),
        (
            SqueezeStalled(VM, 32 * MIB, 0, 60.0),
            "gives nothing: stopping at 0 B of 32 MiB, and asking for no more for 60 s",
        ),
        (
            BalloonMissing(VM, Missing.NEVER_FREED, GIB, GIB),
            "gave 1 GiB, of which the host has not got 1 GiB: its memory is locked (mem-lock=on, "
            "<locked/>), not shared with its VMM's file, of huge pages, or pinned for a device; "
            "not asking it for more",
        ),
        (
            Stopping("SIGUSR1", vms_stay=True),
            "SIGUSR1: ending, the guests stay for the next balloond",
        ),
        (LinesLost(1), "1 line could not be written here (a full disk, or a slow reader): lost"),
        (EventsLost(2), "2 events came too fast to be written: lost"),
    ],
)
def test_words_of_balloons_and_of_the_end(event: Event, message: str) -> None:
    assert message_of(event) == message


@pytest.mark.parametrize(
    ("share", "taken", "most", "closing", "why"),
    [
        (Share.CONNECTIONS, 1024, 1024, 0, "there are 1024 connections, as many as there may be"),
        (
            Share.CLOSES,
            1025,
            1024,
            0,
            "1025 of its descriptors wait for a close that does not end, 1024 may",
        ),
        (
            Share.USERS_DESCRIPTORS,
            720,
            750,
            0,
            "it takes 720 descriptors, of 750 at most; allow more (ulimit -n, LimitNOFILE=)",
        ),
        (
            Share.USERS_DESCRIPTORS,
            750,
            750,
            710,
            "it takes 750 descriptors (710 of them wait for a close that does not end), of 750 at "
            "most; allow more (ulimit -n, LimitNOFILE=)",
        ),
        (
            Share.DESCRIPTORS,
            840,
            875,
            0,
            "all VMs together take 840 descriptors, of 875 at most; allow more (ulimit -n, "
            "LimitNOFILE=)",
        ),
    ],
)
def test_words_of_what_is_taken_up(
    share: Share, taken: int, most: int, closing: int, why: str
) -> None:
    refused = ConnectionRefused(1000, share, taken, most, closing, suppressed=4)
    assert message_of(refused) == (f"a connection of user 1000 is refused: {why} (4 more like it)")


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (
            Decision(Reason.NOT_ENOUGH_BACK, 1, 1, 16, 192 * MIB, Reading(783, 400), 784),
            "not enough memory is back yet (783 MiB available, margin 400 MiB, 784 MiB needed): "
            "balloon stays at level 1/16, 192 MiB",
        ),
        (
            Decision(Reason.MEMORY_BACK, 1, 0, 16, 0, Reading(1784, 400), 784),
            "memory is back (1,784 MiB available, margin 400 MiB, 784 MiB needed): "
            "balloon shrinks to level 0/16, 0 B",
        ),
        (
            Decision(Reason.UNKNOWN, 1, 1, 16, 192 * MIB),
            "available memory is unknown: balloon stays at level 1/16, 192 MiB",
        ),
        (
            Decision(Reason.SWITCHED_OFF, 1, 0, 16, 0),
            "low memory is switched off: balloon shrinks to level 0/16, 0 B",
        ),
        (
            Decision(Reason.ADOPTED, 0, 1, 16, 192 * MIB),
            "the guest has this balloon already: balloon goes on from level 1/16, 192 MiB",
        ),
        (
            Decision(Reason.LOW_MEMORY, 0, 1, 16, 192 * MIB, Reading(9, 26, "/vms/memory.max")),
            "low memory (9 MiB available within /vms/memory.max, margin 26 MiB): "
            "balloon grows to level 1/16, 192 MiB",
        ),
    ],
)
def test_words_of_decisions(decision: Decision, message: str) -> None:
    assert message_of(Decided(VM, decision)) == message


def test_decision_for_other_limits_says_the_target_and_no_direction() -> None:
    decision = Decision(Reason.LIMITS_CHANGED, 16, 16, 16, 64 * MIB)
    assert message_of(Decided(VM, decision)) == (
        "the limits of the VM's balloon have changed: balloon is to be at level 16/16, 64 MiB"
    )


def test_decision_of_an_adaptive_vm_says_what_is_aimed_at_and_goes_by_bytes() -> None:
    reading, sizes = Reading(500, 400), (700, 70 * MIB)
    grows = Decision(Reason.RUNNING_LOW, 2, 2, 16, 80 * MIB, reading, None, *sizes)
    line = worded(Decided(VM, grows))
    assert line is not None
    assert line.message == (
        "memory is about to be low (500 MiB available, margin 400 MiB, 700 MiB aimed at): balloon "
        "grows to level 2/16, 80 MiB"
    )
    assert line.fields["aim_mib"] == 700
    shrinks = grows._replace(target_bytes=65 * MIB, reason=Reason.MEMORY_BACK, needed_mib=750)
    assert message_of(Decided(VM, shrinks)).endswith("balloon shrinks to level 2/16, 65 MiB")


def test_limit_below_which_memory_is_available_is_a_field_of_its_own() -> None:
    decision = Decision(Reason.LOW_MEMORY, 0, 1, 16, MIB, Reading(9, 26, "/vms/memory.max"))
    line = worded(Decided(VM, decision))
    assert line is not None
    assert line.fields["within"] == "/vms/memory.max"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason: Reason) -> None:
    assert message_of(Decided(VM, Decision(reason, 0, 0, 16, 0)))


@pytest.mark.parametrize(
    "event",
    [
        DeviceStarted(VM, 12, ("statsq",), quiet=True),
        DeviceLooks(VM, 12, ("statsq",), quiet=True),
        VmResized(VM, GIB, GIB // 2, 16, quiet=True),
        Decided(VM, Decision(Reason.RECHECK, 0, 0, 16, 0), quiet=True),
        TargetReached(VM, 0, 0, quiet=True),
    ],
    ids=lambda event: type(event).__name__,
)
def test_quiet_event_has_a_line_for_debugging(event: Event) -> None:
    line = worded(event)
    assert line is not None
    assert line.level is DEBUG
    assert "quiet" not in line.fields
    assert is_debug(event)


def test_guest_that_has_not_said_what_free_pages_hold_has_its_own_sentence() -> None:
    line = worded(ReportsNotFreed(VM, None))
    assert line is not None
    assert line.message == (
        "the guest's driver has not said what its free pages must hold (poison_val): free pages "
        "that it reports are not taken from it; the balloon gives its memory back as ever"
    )


def test_api_that_no_group_may_read_names_none() -> None:
    line = worded(ApiListening("/run/api.sock", ""))
    assert line is not None
    assert line.message == "the API listens on /run/api.sock"


def test_first_clients_that_send_descriptors_cost_the_group_nothing() -> None:
    line = worded(ApiMisused(1000, closed=False))
    assert line is not None
    assert line.message.endswith("its connection is dropped")


def test_user_who_asks_for_an_empty_balloon_asks_for_all_memory_back() -> None:
    line = worded(SizeAsked(VM, 0, 0, 0.0))
    assert line is not None
    assert line.message == "user 0 asks for all of its memory back"


@pytest.mark.parametrize(
    ("event", "message", "fields"),
    [
        (
            TakingPaused(None, 0, 60.0),
            "user 0 pauses: nothing more is taken from any VM for 60 s",
            {"uid": 0, "for_s": 60.0},
        ),
        (TakingResumed(None, None), "the pause of all VMs is over: its time is over", {}),
    ],
)
def test_pause_of_all_vms_names_none(
    event: Event, message: str, fields: dict[str, object]
) -> None:
    line = worded(event)
    assert line is not None
    assert (line.message, line.fields) == (message, fields)


def test_configuration_read_anew_is_said_in_the_singular_and_where_nothing_changed() -> None:
    assert [message_of(event) for event in (ConfigReloaded(), ConfigRefused(1))] == [
        "the configuration is read anew: nothing has changed",
        "the configuration has a mistake: the one before stays in force, whole",
    ]


def test_decision_under_a_reserve_tells_margin_and_reserve_apart() -> None:
    reading = Reading(500, 2448, reserved_mib=2048)
    line = worded(Decided(VM, Decision(Reason.LOW_MEMORY, 0, 1, 16, 32 * MIB, reading)))
    assert line is not None
    assert line.message == (
        "low memory (500 MiB available, margin 400 MiB, 2,048 MiB reserved): balloon grows to "
        "level 1/16, 32 MiB"
    )
    assert (line.fields["margin_mib"], line.fields["reserved_mib"]) == (400, 2048)

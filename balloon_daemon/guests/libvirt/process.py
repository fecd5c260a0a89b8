"""libvirt's client: a separate program that makes libvirt's calls, and does nothing else.

Runs by its file (``python -I process.py FD``), as ``interpreter.py`` has it. balloond talks to it
through the socket FD, in lines of JSON (``guests/libvirt/wire.py``). libvirt's library starts
threads, and most of its calls have no time limit: while a domain's QEMU does not answer, calls
about this domain hang. So balloond kills this process when too many calls hang. No VM is harmed:
libvirt's daemon and QEMU go on, and a new client can ask again for all that is lost.

It ends when balloond closes the socket, and when libvirt's daemon ends the connection.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

# This file imports nothing of balloon_daemon: its interpreter may be another than balloond's, in
# which balloon_daemon is not installed.
MAX_CALLS = 4
"""The most calls at a time. libvirt's daemon serves 5 of one connection (max_client_requests), so
that ``controlInfo`` always has room beside calls that hang."""

MAX_LINE_BYTES = 1 << 20
"""The longest line in either direction: the names of some 10,000 domains."""

MAX_XML_CHARACTERS = 1 << 20
"""The longest description of a domain; 10,000 to 20,000 characters are usual."""

HANGS_AFTER_MS = 2000
"""No call is begun to a domain whose QEMU has been busy with another command for so long."""

ENDING_LOOKS, ENDING_LOOK_S = 20, 0.05
"""If ``controlInfo`` says VIR_DOMAIN_CONTROL_ERROR of a domain, the domain is looked at again so
often, with so many seconds between. A domain that is being destroyed has that state for 1 to 10 ms
(libvirt 12.8), a domain whose monitor libvirt has lost has it for good."""

TOLD_EVERY_S = 1 / 400
"""How soon after an event balloond is told the next one, of any domain. A QEMU that was taken over
sends any number, and each takes some 10 us of the thread that serves all VMs."""

KEEPALIVE_S, KEEPALIVES = 5, 3
"""libvirt's daemon counts as gone when it has not answered for 5 × (3 + 1) seconds."""

STATISTICS = (
    "actual", "swap_in", "swap_out", "major_fault", "minor_fault", "unused", "available", "usable",
    "last_update", "disk_caches", "hugetlb_pgalloc", "hugetlb_pgfail",
)  # fmt: skip
"""The statistics of memory that are passed on to balloond, by libvirt's names; sizes in KiB."""

_PINNING = (
    ("hostdev", {"pci", "mdev", "ap", "ccw"}), ("interface", {"hostdev", "vdpa"}),
    ("disk", {"nvme"}),
)  # fmt: skip
"""Elements of a domain's description, and types of them, that assign a device of the host by VFIO
or vDPA, which pins the guest's memory."""

_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

_DENIED = "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "ACCESS_DENIED", "OPERATION_DENIED"
_FAULTS = {"NO_DOMAIN": "no-vm", "NO_CONNECT": "not-there", "OPERATION_TIMEOUT": "hangs"}
_FAULTS |= dict.fromkeys(_DENIED, "no-permission")
"""The value of a ``Fault`` for libvirt's errors (VIR_ERR_…); all others are "refused"."""


class CallError(Exception):
    """A call cannot be made, or has failed: the value of a ``Fault``, and a line of detail."""

    def __init__(self, fault: str, detail: str = "") -> None:
        super().__init__(fault, detail)
        self.fault, self.detail = fault, detail


def describe(xml: str) -> dict[str, Any]:
    """What a driver needs to know of a domain's description.

    Args:
        xml: the running domain's description.

    Returns:
        JSON's values: ``apart_kib``, memory that libvirt's maximum counts and the balloon's size
        does not; ``period_s`` of the statistics; whether there is a ``balloon``, whether it does
        ``deflate_on_oom``; whether it has ``disks`` whose reads QEMU counts; whether its memory is
        on ``hugetlb`` or ``pinned``.

    Raises:
        CallError: the description is too long, or is none of a domain.
    """
    if len(xml) > MAX_XML_CHARACTERS:
        raise CallError("nonsense", f"a description of {len(xml)} characters")
    try:
        root = ElementTree.fromstring(xml)
        balloon = root.find("devices/memballoon")
        stats = root.find("devices/memballoon/stats")
        return {
            "apart_kib": sum(
                _kib(memory.find("target/size"))
                for memory in root.findall("devices/memory")
                # QEMU's balloon counts DIMMs, but not virtio-mem, NVDIMMs and the like.
                if memory.get("model") != "dimm"
            ),
            "balloon": balloon is not None and balloon.get("model") != "none",
            "deflate_on_oom": balloon is not None and balloon.get("autodeflate") == "on",
            # QEMU does not count the reads of a vhost-user disk: another process makes them.
            "disks": any(disk.get("type") != "vhostuser" for disk in root.findall("devices/disk")),
            "period_s": 0 if stats is None else int(stats.get("period", 0)),
            "hugetlb": root.find("memoryBacking/hugepages") is not None,
            "pinned": any(
                device.get("type") in types
                for name, types in _PINNING
                for device in root.findall(f"devices/{name}")
            ),
        }
    except (ElementTree.ParseError, ValueError) as err:
        raise CallError("nonsense", f"a description that cannot be read: {err}") from err


def _kib(size: "ElementTree.Element | None") -> int:
    if size is None or (unit := size.get("unit", "KiB")) not in _UNITS:
        raise ValueError("memory without a size, or in another unit")
    return int(size.text or "") * _UNITS[unit] // 1024


class _Domain:
    """What is known of a domain that was opened.

    Args:
        uuid: the domain's UUID.
        number: libvirt's id for the domain, which stays the same until the domain ends.
    """

    def __init__(self, uuid: str, number: int) -> None:
        self._uuid = uuid
        self.number = number
        self.described: dict[str, Any] = {}
        self.max_kib = 0
        self.changed = True
        """Whether devices have come or gone since the description was read."""
        self.adds_up_disks = True
        """Whether libvirt's driver answers the sum of all disks (``blockStats("")``)."""

    def size_kib(self, handle: Any, *, anew: bool) -> int:
        """The VM's size as its balloon counts it: without virtio-mem.

        Args:
            handle: libvirt's object for the domain.
            anew: read the description even if nothing seems to have changed.
        """
        max_kib = handle.maxMemory()
        if anew or self.changed or max_kib != self.max_kib:
            self.changed = False
            self.described = describe(handle.XMLDesc())
            self.max_kib = max_kib
        return int(max_kib - self.described["apart_kib"])

    def has_ended(self, connection: Any, libvirt: Any) -> bool:
        """Whether the domain has ended, or ends now; it may have been started anew since."""
        try:
            handle = connection.lookupByUUIDString(self._uuid)
            if handle.ID() == self.number:
                _control_of(handle, libvirt)
                return False
        except libvirt.libvirtError as err:
            # OPERATION_INVALID is controlInfo's error for a domain that does not run.
            codes = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
            return err.get_error_code() in codes
        return True


def _control_of(handle: Any, libvirt: Any) -> tuple[int, int, int]:
    """The answer of ``controlInfo``, which waits for no QEMU: a state, details, milliseconds."""
    for _ in range(ENDING_LOOKS):
        control: tuple[int, int, int] = handle.controlInfo()
        if control[0] != libvirt.VIR_DOMAIN_CONTROL_ERROR:
            break
        time.sleep(ENDING_LOOK_S)
    return control


class _Worker:
    """A thread that makes one call at a time, on a connection of its own.

    Two threads must not share a connection: with libvirt 9.0's client (Debian 12), while a call
    hangs in one of them, calls of the other may each wait for the keepalive's timer. See
    findings/libvirt-calls-that-share-a-connection-wait.sh.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._connection: Any = None
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            request = self.requests.get()
            number = request.pop("id")
            answer = self._make(request.pop("do"), request)
            # First count as idle, then answer: the next request may follow at once.
            self._client.idle.append(self)
            self._client.send({"id": number, **answer})

    def _make(self, do: str, arguments: dict[str, Any]) -> dict[str, Any]:
        client = self._client
        try:
            if do == "connect":
                return {"ok": client.connect(**arguments)}
            if self._connection is None:
                self._connection = client.open_connection()
            return {"ok": client.calls[do](self._connection, **arguments)}
        except CallError as err:
            return {"error": err.fault, "detail": err.detail}
        except Exception as err:
            fault = client.fault(err)
            if fault is None:
                client.send({"error": "nonsense", "detail": f"{type(err).__name__}: {err}"})
                os._exit(1)
            if self._connection is not None and not self._connection.isAlive():
                self._connection = None
            return {"error": fault, "detail": " ".join(str(err).split())[:500]}


class Client:
    """Makes the calls that come through a socket.

    Args:
        sock: to balloond.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._libvirt: Any = None
        self._uri = ""
        self._events: Any = None
        self._domains: dict[str, _Domain] = {}
        self._news: dict[tuple[str, str, str], None] = {}
        """Events that balloond is not told yet: each a key, the oldest first."""
        self._has_news = threading.Condition()
        self.idle: list[_Worker] = []
        """Workers that wait for a request. The worker that became idle last is used first, so that
        a calm host needs only one or two workers, each with a connection."""
        self.calls: dict[str, Callable[..., Any]] = {
            "domains": self._list,
            "open": self._open,
            "sample": self._sample,
            "set": self._set,
            "period": self._set_period,
        }

    def run(self) -> None:
        """Serves until balloond closes the socket."""
        with self._sock.makefile("rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                # balloond makes no more than MAX_CALLS calls at a time.
                worker = self.idle.pop() if self.idle else _Worker(self)
                worker.requests.put(json.loads(line))

    def send(self, message: dict[str, Any]) -> None:
        """Sends a line; ends the process where balloond has gone."""
        with self._sending:
            try:
                self._sock.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                os._exit(0)

    def fault(self, err: Exception) -> str | None:
        """The value of a ``Fault`` for an error of libvirt's; None: the error is not libvirt's."""
        # The class of libvirt's errors exists only once libvirt is imported.
        if self._libvirt is None or not isinstance(err, self._libvirt.libvirtError):
            return None
        if (code := err.get_error_code()) == self._libvirt.VIR_ERR_SYSTEM_ERROR:
            return "no-permission" if "ermission denied" in str(err) else "not-there"
        faults = {getattr(self._libvirt, f"VIR_ERR_{name}"): _FAULTS[name] for name in _FAULTS}
        return faults.get(code, "refused")

    def connect(self, uri: str) -> dict[str, Any]:
        """Loads libvirt and connects to it; events come from then on."""
        try:
            import libvirt
        except ImportError as err:
            raise CallError("no-library", str(err)) from err
        self._libvirt = libvirt
        self._uri = uri
        # Otherwise libvirt prints each error on standard error, besides raising it.
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        for run in (self._run_events, self._tell_all):
            threading.Thread(target=run, daemon=True).start()
        events = self._events = self.open_connection()
        with contextlib.suppress(libvirt.libvirtError):  # Drivers without a daemon refuse.
            events.registerCloseCallback(lambda *_: os._exit(0), None)
        for name, callback in (
            ("LIFECYCLE", self._lifecycle),
            ("REBOOT", lambda _c, domain, _o: self._tell("reset", domain)),
            ("BALLOON_CHANGE", lambda _c, domain, _kib, _o: self._tell("balloon", domain)),
            ("DEVICE_ADDED", self._devices_changed),
            ("DEVICE_REMOVED", self._devices_changed),
            ("JOB_COMPLETED", self._job_completed),
            # A migration that is cancelled before it stops the domain ends without an event, but
            # has read memory: so each of its iterations counts.
            ("MIGRATION_ITERATION", lambda _c, domain, _n, _o: self._tell("refilled", domain)),
        ):
            number = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{name}")
            with contextlib.suppress(libvirt.libvirtError):  # Not every driver has all events.
                events.domainEventRegisterAny(None, number, callback, None)
        return {"version": libvirt.getVersion()}

    def open_connection(self) -> Any:
        """Another connection to libvirt's daemon."""
        connection = self._libvirt.open(self._uri)
        with contextlib.suppress(self._libvirt.libvirtError):  # Fails without a daemon.
            connection.setKeepAlive(KEEPALIVE_S, KEEPALIVES)
        return connection

    # --- calls ----------------------------------------------------------------------------------

    def _list(self, connection: Any) -> list[list[str]]:
        running = connection.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return [[each.name(), each.UUIDString()] for each in running]

    def _open(self, connection: Any, name: str) -> dict[str, Any]:
        named = connection.lookupByName(name)
        if named.ID() < 0:
            raise CallError("no-vm", "the domain does not run")
        uuid = named.UUIDString()
        self._domains[uuid] = _Domain(uuid, named.ID())
        with self._opened(connection, uuid) as (domain, handle):
            domain.size_kib(handle, anew=True)
            if not domain.described["balloon"]:
                raise CallError("no-balloon")
            return {"uuid": uuid, **self._figures(domain, handle)}

    def _sample(self, connection: Any, uuid: str) -> dict[str, Any]:
        with self._opened(connection, uuid) as (domain, handle):
            return self._figures(domain, handle)

    def _figures(self, domain: _Domain, handle: Any) -> dict[str, Any]:
        stats = handle.memoryStats()
        size_kib = domain.size_kib(handle, anew=False)
        if stats.get("actual", 0) > size_kib:
            # Memory was plugged or unplugged between the two calls.
            stats = handle.memoryStats()
            size_kib = domain.size_kib(handle, anew=True)
        state, reason = handle.state()[:2]
        age_ms = int((time.time() - stats.get("last_update", 0)) * 1000)
        return {
            "size_kib": size_kib,
            "state": state,
            "reason": reason,
            "stats": {name: stats[name] for name in STATISTICS if name in stats},
            "age_ms": age_ms,
            "read_bytes": self._read_bytes(domain, handle),
            **domain.described,
        }

    def _read_bytes(self, domain: _Domain, handle: Any) -> int | None:
        if not domain.described["disks"] or not domain.adds_up_disks:
            return None
        try:
            return int(handle.blockStats("")[1])  # "": all disks together
        except self._libvirt.libvirtError:
            domain.adds_up_disks = False
            return None

    def _set(self, connection: Any, uuid: str, balloon_kib: int, told_kib: int) -> None:
        """Sets a balloon's size, which was decided when ``told_kib`` was the VM's size."""
        with self._opened(connection, uuid) as (domain, handle):
            self._check_no_job(handle)
            size_kib = domain.size_kib(handle, anew=True)
            # If the VM has grown since then, its balloon gets the size that was decided. If the VM
            # has shrunk, its balloon gets less: the guest keeps as much memory as was decided for
            # it, so never less than the least that its settings leave it.
            left_kib = max(size_kib, told_kib) - balloon_kib
            if left_kib <= 0:
                raise CallError("refused", f"{balloon_kib} KiB of {size_kib} KiB")
            live = self._libvirt.VIR_DOMAIN_AFFECT_LIVE
            handle.setMemoryFlags(min(left_kib, size_kib), live)

    def _set_period(self, connection: Any, uuid: str, period_s: int) -> None:
        with self._opened(connection, uuid) as (_, handle):
            self._check_no_job(handle)
            handle.setMemoryStatsPeriod(period_s, self._libvirt.VIR_DOMAIN_AFFECT_LIVE)

    @contextlib.contextmanager
    def _opened(self, connection: Any, uuid: str) -> Iterator[tuple[_Domain, Any]]:
        """Yields an opened domain whose QEMU answers, and libvirt's object for the domain. If the
        domain ends meanwhile, any error of libvirt's becomes "gone"."""
        domain = self._domains[uuid]
        try:
            handle = connection.lookupByUUIDString(uuid)
            if domain.number != handle.ID():
                raise CallError("gone", "the domain has ended")
            self._check_answers(handle)
            yield domain, handle
        except self._libvirt.libvirtError as err:
            if domain.has_ended(connection, self._libvirt):
                raise CallError("gone", "the domain has ended") from err
            raise

    def _check_answers(self, handle: Any) -> None:
        """Raises CallError where a call would hang, as QEMU's monitor does not answer libvirt."""
        state, _, busy_ms = _control_of(handle, self._libvirt)
        if state == self._libvirt.VIR_DOMAIN_CONTROL_ERROR:
            raise CallError("hangs", "libvirt has lost control of it")
        occupied = state == self._libvirt.VIR_DOMAIN_CONTROL_OCCUPIED
        if occupied and busy_ms > HANGS_AFTER_MS:
            raise CallError("hangs", f"its QEMU has not answered for {busy_ms // 1000} s")

    def _check_no_job(self, handle: Any) -> None:
        """Raises CallError while libvirt saves, dumps, snapshots or migrates the domain: it would
        delay a change of the balloon until that job ends, for up to 30 s."""
        try:
            job = handle.jobStats()
        except self._libvirt.libvirtError:
            return  # This driver has no jobs.
        if job.get("type", 0) and job.get("operation") in self._reading_jobs():
            raise CallError("refused", "libvirt saves or migrates the domain")

    def _reading_jobs(self) -> set[int]:
        """libvirt's jobs that read all of a domain's memory and keep the domain from changes."""
        names = ("SAVE", "MIGRATION_OUT", "SNAPSHOT", "DUMP")
        return {getattr(self._libvirt, f"VIR_DOMAIN_JOB_OPERATION_{name}") for name in names}

    # --- events, in the thread of libvirt's event loop ------------------------------------------

    def _run_events(self) -> None:
        while True:
            self._libvirt.virEventRunDefaultImpl()

    def _tell(self, event: str, domain: Any) -> None:
        """Has balloond told of an event: once, after all that came before it came last."""
        news = event, domain.name(), domain.UUIDString()
        with self._has_news:
            self._news.pop(news, None)
            self._news[news] = None
            self._has_news.notify()

    def _tell_all(self) -> None:
        while True:
            self._tell_next()
            time.sleep(TOLD_EVERY_S)

    def _tell_next(self) -> None:
        with self._has_news:
            while not self._news:
                self._has_news.wait()
            event, name, uuid = next(iter(self._news))
            del self._news[event, name, uuid]
        self.send({"event": event, "name": name, "uuid": uuid})

    def _lifecycle(self, _connection: Any, domain: Any, event: int, _detail: int, _o: Any) -> None:
        events = {
            self._libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
            self._libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
            # A save that was cancelled has read memory, too, but sends no JOB_COMPLETED.
            self._libvirt.VIR_DOMAIN_EVENT_RESUMED: "refilled",
        }
        self._tell(events.get(event, "changed"), domain)

    def _devices_changed(self, _connection: Any, domain: Any, _alias: str, _o: Any) -> None:
        if known := self._domains.get(domain.UUIDString()):
            known.changed = True
        self._tell("changed", domain)

    def _job_completed(self, _connection: Any, domain: Any, job: Any, _o: Any) -> None:
        if job.get("operation") in self._reading_jobs():
            self._tell("refilled", domain)


def main(fd: int) -> None:
    """Runs the client until balloond closes the socket.

    Args:
        fd: the socket's number.
    """
    # systemd and terminals send these signals to all processes of balloond at once. Ignore them:
    # balloond needs this process to give memory back before it ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Detach from balloond's output: libvirt's library prints warnings, and a reader of the output
    # sees the end of file only when no process has the output open.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    Client(socket.socket(fileno=fd)).run()
    # Threads that hang in libvirt would keep the interpreter from ending.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""One whole fake guest: memory, VMM and driver, driven by readable descriptors.

Runs in the fake guest's process, or several of them in a test's process. It has no threads and no
asyncio, but a poll loop that a test can step, and that rests while nothing happens, as a guest
does.
"""

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from balloon_daemon.errors import BalloondError
from balloon_daemon.fake_guest.driver import BalloonDriver
from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.pages import Population, populate
from balloon_daemon.fake_guest.ram import GuestRam, PageState, q35_layout
from balloon_daemon.fake_guest.ring import DriverQueue
from balloon_daemon.fake_guest.settings import DriverSettings, area_bytes
from balloon_daemon.fake_guest.styles import QEMU, Ring, Style
from balloon_daemon.fake_guest.wire import DEFAULT_TIMEOUT_S, Wire
from balloon_daemon.units import GIB, PAGE_SIZE

RETRY_S = 0.2
"""Linux's pause after "Out of puff! Can't get pages"."""

POLLED_S = 0.001
"""How often a driver that suppresses interrupts looks at its rings."""

EventSink = Callable[[str, dict[str, int | str]], None]


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """The settings of a fake guest.

    Attributes:
        mem_bytes: its memory, whole pages.
        low_bytes: how much of it lies below 4 GiB; None for q35's rule.
        vga_hole: True: its memory table lacks QEMU's hole below 1 MiB.
        style: the VMM in which it runs.
        num_vqs: queues that the VMM provides.
        driver: how its driver behaves.
        population: the initial content of its memory.
        timeout_s: how long the back-end may take for an answer.
    """

    mem_bytes: int = 4 * GIB
    low_bytes: int | None = None
    vga_hole: bool = False
    style: Style = QEMU
    num_vqs: int = 5
    driver: DriverSettings = field(default_factory=DriverSettings)
    population: Population = field(default_factory=Population)
    timeout_s: float = DEFAULT_TIMEOUT_S


class _NoMachine:
    """The transport of a guest without a connection; a driver reads nothing until there is one."""

    def read_config(self, offset: int, length: int) -> bytes:
        raise ConnectionError("not connected")

    def write_config(self, offset: int, content: bytes) -> None:
        raise ConnectionError("not connected")

    def kick(self, index: int) -> None:
        """A kick without a device; the ring keeps its chains."""


class FakeGuest:
    """A guest with its VMM.

    Args:
        settings: its settings.
        on_event: called with ``bound``, ``inflated``, ``deflated``, ``out_of_puff``, ``reported``,
            ``disconnected``, each with figures.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(self, settings: GuestSettings, on_event: EventSink | None = None) -> None:
        self.settings = settings
        self._on_event: EventSink = on_event or (lambda _name, _figures: None)
        layout = q35_layout(settings.mem_bytes, settings.low_bytes, vga_hole=settings.vga_hole)
        self.ram = GuestRam(layout, seed=settings.population.seed)
        area = self.ram.reserve(area_bytes(settings.driver))
        free = populate(self.ram, settings.population)
        self.driver = BalloonDriver(
            self.ram, area, free, _NoMachine(), settings.driver, self._driver_event
        )
        self.frontend: FakeFrontend | None = None
        self.acknowledged = 0
        self.disconnected = ""
        """Why the connection ended; empty while it has not."""
        self._rings: list[Ring] = []
        self._retry_at: float | None = None

    def close(self) -> None:
        """Hangs up and frees the memory."""
        self.hang_up()
        self.driver.rings.queues = {}
        self.ram.close()

    def hang_up(self) -> None:
        """Closes the connection, as the kernel does for a killed VMM."""
        if self.frontend is not None:
            self.frontend.close()
            self.frontend = None

    def _driver_event(self, name: str, figures: dict[str, int]) -> None:
        self._on_event(name, dict(figures))

    def connect(self, socket_path: str) -> None:
        """Connects and negotiates; a guest that had a device before starts anew.

        Raises:
            OSError: no process listens, or no answer came in time.
            BackendError: this VMM cannot use the back-end.
        """
        self.attach(Wire.connect(socket_path, timeout_s=self.settings.timeout_s))

    def attach(self, wire: Wire) -> None:
        """Like ``connect``, over a connected socket."""
        self.hang_up()
        self.driver.reset()
        self.disconnected = ""
        frontend = FakeFrontend(wire, self.settings.style, num_vqs=self.settings.num_vqs)
        self.frontend = frontend
        self.driver.rings.transport = frontend
        frontend.on_plugged = self.driver.statistics.memory_plugged
        try:
            frontend.negotiate()
        except BaseException:
            self.hang_up()
            raise

    def bind(self) -> None:
        """Lets the driver find the device: features, rings, DRIVER_OK.

        Raises:
            OSError: no answer in time, or the back-end hung up.
            BackendError: the back-end refused something.
        """
        frontend = self._connected()
        self.acknowledged = self.settings.driver.acknowledged(frontend.negotiated.features)
        self._rings = self.driver.find_queues(self.acknowledged)
        frontend.requests.config_changed = False
        frontend.start(self.acknowledged, self.ram.shared(), self._rings)
        self._on_event("bound", {"features": self.acknowledged})
        self.driver.ready()

    def unbind(self, deadline_s: float = 60.0) -> None:
        """Removes the driver, which empties its balloon first, as Linux's does.

        Raises:
            TimeoutError: the balloon was not empty in time.
            OSError, BackendError: as for ``bind``.
        """
        frontend = self._connected()
        self.driver.leave()
        run([self], lambda: self.driver.idle and self.driver.actual == 0, deadline_s)
        if self.frontend is not frontend:
            raise ConnectionError(self.disconnected)
        frontend.stop()
        self.driver.reset()

    def pause(self) -> None:
        """Stops the virtual CPUs and the device; rings stay as they are."""
        bases = self._connected().stop()
        self._rings = [replace(ring, base=bases[ring.index]) for ring in self._rings]

    def resume(self) -> None:
        """Continues after ``pause``, with the bases that the back-end returned."""
        frontend = self._connected()
        frontend.start(self.acknowledged, self.ram.shared(), self._rings)
        self._settle_config(frontend)

    def reboot(self) -> None:
        """Resets the guest, whose new kernel finds the device: the balloon is forgotten."""
        self._connected().stop()
        self.driver.reset()
        self.bind()

    def _connected(self) -> FakeFrontend:
        if self.frontend is None:
            raise ConnectionError(self.disconnected or "not connected")
        return self.frontend

    # -- the loop -------------------------------------------------------------------------

    def fds(self) -> list[int]:
        """The descriptors to poll for reading."""
        if self.frontend is None:
            return []
        fds = [self.frontend.requests.wire.fileno()]
        if self.frontend.requests.channel is not None:
            fds.append(self.frontend.requests.channel.fileno())
        if self.frontend.running:
            fds += [self.frontend.call_fd(ring.ring.index) for ring in self._queues()]
        return fds

    def _queues(self) -> list[DriverQueue]:
        return list(self.driver.rings.queues.values())

    def timeout_s(self) -> float | None:
        """Seconds after which to call ``handle`` even if nothing is readable."""
        if self.frontend is None or not self.frontend.running:
            return None
        if not self.settings.driver.interrupts:
            return POLLED_S
        if not self.driver.wants_retry:
            self._retry_at = None
            return None
        now = time.monotonic()
        if self._retry_at is None:
            self._retry_at = now + RETRY_S
        return max(0.0, self._retry_at - now)

    def handle(self, readable: Sequence[int]) -> None:
        """Handles readable descriptors, and the time."""
        frontend = self.frontend
        if frontend is None:
            return
        try:
            if frontend.requests.wire.fileno() in readable:
                message, _ = frontend.requests.wire.receive()
                raise ConnectionError(f"an answer that nobody asked for: {message.name}")
            frontend.requests.serve_channel()
            if frontend.running:
                self._settle_config(frontend)
                self._serve_queues(frontend, readable)
                if self._retry_at is not None and time.monotonic() >= self._retry_at:
                    self._retry_at = None
                    self.driver.retry()
                self._settle_config(frontend)
        except (OSError, BalloondError, RuntimeError) as err:
            self._disconnect(str(err) or type(err).__name__)

    def _serve_queues(self, frontend: FakeFrontend, readable: Sequence[int]) -> None:
        if not self.settings.driver.interrupts:
            self.driver.poll_used()
            return
        for queue, ring in list(self.driver.rings.queues.items()):
            fd = frontend.call_fd(ring.ring.index)
            if fd in readable:
                os.eventfd_read(fd)
                self.driver.used(queue)

    def _settle_config(self, frontend: FakeFrontend) -> None:
        # The driver's read of the config space waits for an answer, and another CONFIG_CHANGE_MSG
        # may arrive meanwhile: repeat until none does.
        while frontend.requests.config_changed:
            frontend.requests.config_changed = False
            self.driver.config_changed()

    def _disconnect(self, reason: str) -> None:
        self.disconnected = reason
        self.hang_up()
        self._on_event("disconnected", {"reason": reason})

    # -- figures --------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Figures for an observer, in bytes and pages."""
        frontend = self.frontend
        return {
            "connected": frontend is not None,
            "running": frontend is not None and frontend.running,
            "disconnected": self.disconnected,
            "mem_bytes": self.ram.size_bytes,
            "blocks_bytes": self.ram.blocks_bytes(),
            "touched_bytes": self.ram.count(PageState.PATTERN) * PAGE_SIZE,
            "actual": self.driver.actual,
            "actual_bytes": self.driver.actual * PAGE_SIZE,
            "num_pages": self.driver.num_pages,
            "idle": self.driver.idle,
            "features": self.acknowledged,
            **asdict(self.driver.counters),
            "frontend": asdict(frontend.requests.counters) if frontend is not None else None,
        }


def run(
    guests: Sequence[FakeGuest], until: Callable[[], bool], deadline_s: float = DEFAULT_TIMEOUT_S
) -> None:
    """Runs guests until a condition holds; returns as soon as it does.

    Raises:
        TimeoutError: it did not hold in time.
    """
    deadline = time.monotonic() + deadline_s
    while not until():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"waited {deadline_s:g} s for the guests")
        step(guests, min(left_s, 0.05))


def step(guests: Sequence[FakeGuest], wait_s: float, others: Sequence[int] = ()) -> list[int]:
    """Waits once for guests and other descriptors, and lets the guests act.

    Args:
        guests: the guests.
        wait_s: longest wait, in seconds.
        others: further descriptors to wait for.

    Returns:
        Those of ``others`` that are readable or hung up.
    """
    poller = select.poll()
    owner = {fd: guest for guest in guests for fd in guest.fds()}
    for fd in [*owner, *others]:
        poller.register(fd, select.POLLIN)
    timeouts = [left for guest in guests if (left := guest.timeout_s()) is not None]
    ready = [fd for fd, _ in poller.poll(min([wait_s, *timeouts]) * 1000)]
    for guest in guests:
        guest.handle([fd for fd in ready if owner.get(fd) is guest])
    return [fd for fd in ready if fd not in owner]

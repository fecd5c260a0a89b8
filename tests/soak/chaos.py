"""What happens in a soak: one random fault after the other, and every page checked in between.

Targets move all the time (the low-memory directory says something else every second), so kills
fall into inflating, deflating and idling alike.
"""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from balloon_daemon.linux.figures import TOGETHER
from tests.harness.enemies.hostile import HostileGuest, converse
from tests.harness.jail_watch import JailWatch, template_of
from tests.soak.gauges import EVERY_S, Gauge
from tests.soak.world import MAXIMUM_BYTES, Host, SoakedGuest

WEATHER_EVERY_S = 0.7
MAX_FAILURES = 5
"""After so many a soak ends: it would only say the same again."""

MAX_RSS_GROWTH = 8 << 20
MAX_FD_GROWTH = 8 + TOGETHER - 1
"""More than this is growth; a median over a quarter of a short run is a little off by itself.
Where closes have taken long, as on a busy machine, up to ``TOGETHER - 1`` descriptors wait for a
child that closes them (``figures.Closes``)."""


@dataclass(slots=True)
class Tally:
    """The figures of a soak, and what went wrong in words."""

    operations: int = 0
    device_kills: int = 0
    controller_kills: int = 0
    pages_checked: int = 0
    pages_lost: int = 0
    failures: list[str] = field(default_factory=list)
    kill_times: list[float] = field(default_factory=list)
    """Seconds since the beginning at which a controller was killed."""


class Chaos:
    """Makes faults until the time is over.

    Args:
        lasting: the balloond whose controller stays.
        mortal: the one whose controller is killed.
        random: decides everything that is not the kernel's to decide.
        look_every_s: seconds between two looks at what must stay flat; there is one more at the
            end of each run.
    """

    def __init__(
        self, lasting: Host, mortal: Host, random: Random, *, look_every_s: float = EVERY_S
    ) -> None:
        self._hosts = [lasting, mortal]
        self._mortal = mortal
        self._random = random
        self._began = time.monotonic()
        self._weather_at = 0.0
        self._jails = JailWatch()
        self.tally = Tally()
        # It forks every device of a balloond that lasts: what a fork left behind would add up.
        self._template = template_of(lasting.pid)
        forks = "what forks the lasting one's devices"
        names = [lasting.name, mortal.name, forks, "keeper of the mortal one's VMs"]
        self.gauges = [Gauge(name, self._began, look_every_s) for name in names]
        self._faults: dict[Callable[[Host, SoakedGuest], None], int] = {
            self._kill_device: 70,
            self._kill_all_devices: 25,
            self._kill_controller: 3,
            self._replace_controller: 1,
            self._kill_in_mid_command: 6,
            self._reconnect: 3,
            self._pause_and_resume: 4,
            self._unbind_and_bind: 2,
            self._reboot: 2,
            self._use_memory: 3,
            self._report_free_pages: 3,
            self._hostile_vmm: 6,
            self._hostile_guest: 2,
            self._check: 5,
        }

    def run(self, seconds: float, *, at_least: int = 0) -> None:
        """Chaos for a time; then calm, in which everything must be as it should.

        Args:
            seconds: how long.
            at_least: operations that a busy machine is given more time for.
        """
        end = time.monotonic() + seconds
        faults, weights = list(self._faults), list(self._faults.values())
        while len(self.tally.failures) < MAX_FAILURES:
            if time.monotonic() >= end and self.tally.operations >= at_least:
                break
            fault = self._random.choices(faults, weights)[0]
            host = self._random.choices(self._hosts, [3, 2])[0]
            guest = self._random.choice(host.guests)
            self._attempt(f"{fault.__name__} of {guest.vm} ({host.name})", fault, host, guest)
            self.tally.operations += 1
            self._weather()
            self.look()
        for host in self._hosts:
            self._attempt(f"calm of the {host.name} balloond", self._calm, host)
        self.look(at_once=True)

    def look(self, *, at_once: bool = False) -> None:
        """Looks at what must stay flat, where that is due, or at once."""
        for host, gauge in zip(self._hosts, self.gauges, strict=False):
            gauge.look(host.pid, host.life, at_once=at_once)
        self.gauges[2].look(self._template, 0, at_once=at_once)
        keeper = self._mortal.keeper()
        if keeper is not None:
            self.gauges[3].look(keeper, 0, at_once=at_once)

    def kill_each(self, times: int) -> None:
        """Deaths of each kind, whatever the dice would say: for a run too short to rely on them.

        Args:
            times: how often one device of each balloond is killed, at most as often as balloond
                bears it; the mortal one's controller once, after that.
        """
        for host in self._hosts:
            for _ in range(times):
                self._attempt(f"a device of {host.name}", self._kill_one, host, host.guests[0])
        self._attempt(
            "the controller", self._kill_controller, self._mortal, self._mortal.guests[0]
        )

    def _kill_one(self, host: Host, guest: SoakedGuest) -> None:
        self.tally.device_kills += host.kill_devices([guest])

    def _attempt(self, what: str, action: Callable[..., None], *arguments: object) -> None:
        try:
            action(*arguments)
        except (AssertionError, OSError, RuntimeError, ValueError) as err:
            at = time.monotonic() - self._began
            self.tally.failures.append(f"{at:.1f} s, {what}: {type(err).__name__}: {err}")

    def _weather(self) -> None:
        """The hosts' memory goes up and down."""
        if time.monotonic() < self._weather_at:
            return
        self._weather_at = time.monotonic() + WEATHER_EVERY_S * self._random.random() * 2
        for host in self._hosts:
            available_mib = self._random.choice((0, 50, 99, 100, 131, 132, 200, 1 << 20))
            host.low_mem.set_available(available_mib)

    # --- faults -------------------------------------------------------------------------------

    def _kill_device(self, host: Host, guest: SoakedGuest) -> None:
        """Kills a device, and often its successor too, as soon as it serves."""
        if not guest.may_lose_its_device():
            # As an operator would do who reads that its balloon stops until its VMM reconnects.
            host.reconnect(guest)
        for _ in range(self._random.choice((1, 5, 5))):
            if guest.may_lose_its_device():
                self.tally.device_kills += host.kill_devices([guest])

    def _kill_all_devices(self, host: Host, guest: SoakedGuest) -> None:
        for _ in range(self._random.choice((1, 5, 5))):
            able = [each for each in host.guests if each.may_lose_its_device()]
            self.tally.device_kills += host.kill_devices(able)

    def _kill_controller(self, host: Host, guest: SoakedGuest) -> None:
        self.tally.kill_times.append(time.monotonic() - self._began)
        self._mortal.kill_controller()
        self.tally.controller_kills += 1

    def _replace_controller(self, host: Host, guest: SoakedGuest) -> None:
        """Another balloond takes over in order, as for a new version."""
        if self._mortal.keeps:
            self._mortal.kill_controller(signal.SIGUSR1)

    def _kill_in_mid_command(self, host: Host, guest: SoakedGuest) -> None:
        """The VMM is in the middle of something when the device or the controller dies."""
        command, undo = self._random.choice(
            (("pause", "resume"), ("stop", "start"), ("reboot", ""))
        )
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(guest.process.command, command)
            if host.keeps and self._random.random() < 0.25:
                self.tally.kill_times.append(time.monotonic() - self._began)
                host.kill_controller()
                self.tally.controller_kills += 1
            else:
                self.tally.device_kills += host.kill_present_device(guest)
            answer.result()
        if undo:
            guest.process.command(undo)

    def _reconnect(self, host: Host, guest: SoakedGuest) -> None:
        host.reconnect(guest)

    def _pause_and_resume(self, host: Host, guest: SoakedGuest) -> None:
        guest.process.command("pause")
        guest.process.command("resume")

    def _unbind_and_bind(self, host: Host, guest: SoakedGuest) -> None:
        guest.process.command("stop")
        guest.process.command("start")

    def _reboot(self, host: Host, guest: SoakedGuest) -> None:
        guest.process.command("reboot")

    def _use_memory(self, host: Host, guest: SoakedGuest) -> None:
        guest.process.command("touch", bytes=self._random.randrange(8 << 20))

    def _report_free_pages(self, host: Host, guest: SoakedGuest) -> None:
        try:
            guest.process.command("report-free-pages", block_pages=self._random.choice((16, 512)))
        except RuntimeError as err:
            if "not negotiated" not in str(err) and "under way" not in str(err):
                raise

    def _hostile_vmm(self, host: Host, guest: SoakedGuest) -> None:
        converse(str(host.config.socket), self._random)

    def _hostile_guest(self, host: Host, guest: SoakedGuest) -> None:
        enemy = HostileGuest(str(host.config.socket), self._random)
        try:
            enemy.misbehave(20)
            self._jails.look(host.pid)
            self.tally.pages_checked += enemy.check()
        finally:
            enemy.close()

    # --- what must hold -----------------------------------------------------------------------

    def _check(self, host: Host, guest: SoakedGuest) -> None:
        """Every page of one guest against its pattern."""
        found = guest.process.command("check")
        self.tally.pages_checked += found["pages_checked"]
        self.tally.pages_lost += found["pages_corrupt"]
        if found["pages_corrupt"]:
            raise AssertionError(f"{guest.vm} lost pages: {found}")
        self._jails.look(host.pid)

    def _calm(self, host: Host) -> None:
        """Every balloon still works both ways, and every page of every guest is there."""
        for guest in host.guests:
            if not guest.may_lose_its_device():
                host.reconnect(guest)
        host.low_mem.set_low()
        host.wait_balloons(MAXIMUM_BYTES)
        for guest in host.guests:
            self._check(host, guest)
        host.low_mem.set_plenty()
        host.wait_balloons(0)
        for guest in host.guests:
            self._check(host, guest)

    def verdict(self) -> dict[str, object]:
        """The soak's last line."""
        growth = [gauge.growth() for gauge in self.gauges]
        rss, fds = max(each[0] for each in growth), max(each[1] for each in growth)
        tally = self.tally
        lost = bool(tally.pages_lost or tally.failures or not tally.pages_checked)
        return {
            "operations": tally.operations,
            "device_kills": tally.device_kills,
            "controller_kills": tally.controller_kills,
            "pages_checked": tally.pages_checked,
            "pages_lost": tally.pages_lost,
            "rss_growth_bytes": rss,
            "fd_growth": fds,
            "ok": not lost and rss <= MAX_RSS_GROWTH and fds <= MAX_FD_GROWTH,
        }

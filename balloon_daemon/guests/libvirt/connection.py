"""A connection to one libvirt, through a process that is started again when it has ended."""

import asyncio
import sys
from collections.abc import Callable

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.libvirt import interpreter, wire
from balloon_daemon.guests.libvirt.client import Client
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.sizing.back_off import BackOff

CONNECTS_WITHIN_S = 10.0
"""How long a connection to libvirt's daemon may take; one over SSH takes a second or two."""

LONG_LIFE_S = 60.0
"""Processes that end sooner are replaced at once the first time, then after 1, 2, 4 … 30 s."""

MAX_WAIT_S = 30.0

MOST_RESTING = 1024
"""Of how many domains the rests (``Connection._rests``) are remembered; of more, the domain whose
rest began first is forgotten."""


def client_command() -> list[str]:
    """The command that starts a client, in an interpreter that has libvirt's library."""
    # -I (isolated): no import from the current directory, nor from the directory of the file.
    return [sys.executable, "-I", interpreter.__file__]


class Connection:
    """The connection that all domains of one libvirt share.

    Args:
        uri: libvirt's name for the connection, such as ``qemu:///system``.
        low: starts the client's processes, which inherit no descriptor that came from a VMM.
        heard: takes events of all domains, in the event loop, after the functions that ``listen``
            was given.
        command: makes the command that starts a client.
    """

    def __init__(
        self,
        uri: str,
        low: LowNumbers,
        heard: Callable[[wire.Happened], None],
        command: Callable[[], list[str]] = client_command,
    ) -> None:
        self.uri = uri
        self._low = low
        self._heard = heard
        self._command = command
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._listeners: dict[str, list[Callable[[wire.Happened], None]]] = {}
        self._failure = ControlError(Fault.NOT_THERE)
        self._began_s = -LONG_LIFE_S
        self._wait_s = 0.0
        self._next_s = 0.0
        self._rests: dict[str, BackOff] = {}
        """The domains whose calls hung when a client was killed for that. A domain is asked
        nothing while its ``BackOff`` lasts: a QEMU that was taken over can answer libvirt until
        balloond makes a call, and then hang. A few such QEMUs would have one client after the
        other killed, and while there is no client no domain of this libvirt is driven."""

    async def client(self, domain: str = "") -> Client:
        """The process, connected to libvirt's daemon; started where there is none.

        Args:
            domain: the domain for which it is wanted; "": for none.

        Raises:
            ControlError: no process runs, and none can be started just now; or the domain rests
                (``_rests``).
        """
        async with self._connecting:
            if self._client is not None and (why := self._client.why_ended) is not None:
                await self._lost(self._client, why)
            self._check(domain)
            if self._client is not None:
                return self._client
            if asyncio.get_running_loop().time() < self._next_s:
                raise ControlError(self._failure.fault, self._failure.detail)
            return await self._connect()

    async def domains(self) -> list[wire.Domain]:
        """The domains that run.

        Raises:
            ControlError: libvirt's daemon cannot be asked.
        """
        client = await self.client()
        try:
            return wire.decode_domains(await client.call("domains", {}))
        except ControlError as err:
            if err.fault in (Fault.HANGS, Fault.NONSENSE):
                # The call was about no single domain: so the daemon does not answer, or the client
                # is broken.
                client.kill(err)
            raise

    async def ended(self, within_s: float) -> bool:
        """Waits until the process has ended; False: it still runs after so many seconds."""
        return self._client is None or await self._client.ended(within_s)

    def listen(self, uuid: str, heard: Callable[[wire.Happened], None]) -> None:
        """Passes a domain's events to this function from now on, and to ``heard`` as before."""
        self._listeners.setdefault(uuid, []).append(heard)

    def unlisten(self, uuid: str, heard: Callable[[wire.Happened], None]) -> None:
        """Passes no more of a domain's events to a function; does nothing if it got none."""
        those = self._listeners.get(uuid, [])
        if heard in those:
            those.remove(heard)
        if not those:
            self._listeners.pop(uuid, None)

    def _hear(self, happened: wire.Happened) -> None:
        for heard in list(self._listeners.get(happened.domain.uuid, [])):
            heard(happened)
        self._heard(happened)

    async def _connect(self) -> Client:
        self._began_s = asyncio.get_running_loop().time()
        try:
            client = self._client = await Client.start(self._command(), self._low, self._hear)
        except OSError as err:
            self._put_off(ControlError(Fault.REFUSED, err.strerror or str(err)))
            raise self._failure from err
        try:
            await client.call("connect", {"uri": self.uri}, within_s=CONNECTS_WITHIN_S)
        except ControlError as err:
            # The client may have ended by itself, and have said why.
            await self._lost(client, client.why_ended or err)
            raise self._failure from err
        except asyncio.CancelledError:
            client.kill(ControlError(Fault.GONE))
            raise
        return client

    def _check(self, domain: str) -> None:
        rest, now_s = self._rests.get(domain), asyncio.get_running_loop().time()
        if rest is not None and rest.lasts(now_s):
            left_s = rest.until_s - now_s
            hung = "its call and other domains' calls hung, so libvirt's client was ended"
            raise ControlError(Fault.HANGS, f"{hung}; not asked for {left_s:.0f} s")

    async def _lost(self, client: Client, why: ControlError) -> None:
        self._client = None
        await client.close()
        for domain in filter(None, client.hung):
            rest = self._rests.pop(domain, None) or BackOff()
            rest.begin(asyncio.get_running_loop().time())
            self._rests[domain] = rest
            if len(self._rests) > MOST_RESTING:
                del self._rests[next(iter(self._rests))]
        if asyncio.get_running_loop().time() - self._began_s >= LONG_LIFE_S:
            self._wait_s = 0.0
        self._put_off(why)

    def _put_off(self, why: ControlError) -> None:
        """Delays the next start: not at all the first time, then ever longer."""
        self._failure = why
        self._next_s = asyncio.get_running_loop().time() + self._wait_s
        self._wait_s = min(MAX_WAIT_S, max(1.0, 2 * self._wait_s))

    async def close(self) -> None:
        """Ends the process."""
        if self._client is not None:
            await self._client.close()
        self._low.close()

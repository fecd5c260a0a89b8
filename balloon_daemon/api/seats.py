"""How many clients the API's server serves at a time, and which one is dropped for a new one.

Clients of root and of this process's user are never refused: these users can harm balloond in
other ways, too.
"""

from collections.abc import Iterable

from balloon_daemon.api.client import Client, Phase
from balloon_daemon.api.messages import Rights

MOST, MOST_READERS, MOST_SCRAPERS = 256, 192, 8
"""The most clients that are served at a time: of all kinds together; of those over the Unix socket
that change nothing (``READERS``); and of those over TCP, which may read only the metrics. Beyond
the first limit connections wait to be accepted; beyond the others a new client is refused, unless
an older one is dropped for it (``makes_room``)."""

MOST_OF_USER = 64
"""How many of the ``READERS`` that are served may belong to one user."""

TAKE_WITHIN_S = 10.0
"""How long a client may receive nothing while its answer waits."""

STALLED_S = 2.0
"""A client over TCP that has received nothing of its answer for this time may be dropped, to serve
a new client."""

READERS = {Rights.NOTHING, Rights.READ}
"""Clients over a Unix socket that change nothing."""


def why_full(new: Client, clients: Iterable[Client]) -> str:
    """Why a client is refused, as a sentence; "": it is served.

    Args:
        new: the client, which connected last.
        clients: all clients, ``new`` among them.
    """
    if new.rights is Rights.CHANGE:
        return ""
    if new.rights is Rights.SCRAPE:
        most, like = MOST_SCRAPERS, [one for one in clients if one.rights is Rights.SCRAPE]
    else:
        most, like = MOST_READERS, [one for one in clients if one.rights in READERS]
        if sum(one.uid == new.uid for one in like) > MOST_OF_USER:
            return f"{MOST_OF_USER} clients of one user are served already; ask again later"
    return f"{most} clients are served already; ask again later" if len(like) > most else ""


def makes_room(new: Client, clients: Iterable[Client], now_s: float) -> Client | None:
    """The client over TCP to drop, so that a new one over TCP can be served: the client that has
    been connected for the longest time without having sent its whole request; if there is none,
    the one whose answer has not moved for the longest time; None: no client is to be dropped.

    SO_PEERCRED tells the user of a Unix socket's client, but not of a TCP client. So there is no
    limit for each user over TCP, and somebody who connects and sends nothing would shut Prometheus
    out.
    """
    if new.rights is not Rights.SCRAPE:
        return None
    others = [one for one in clients if one.rights is Rights.SCRAPE and one is not new]
    asking = [one for one in others if one.phase is Phase.ASKING]
    stalled = [
        one
        for one in others
        if one.phase is Phase.ANSWERED and one.deadline_s - now_s < TAKE_WITHIN_S - STALLED_S
    ]
    return min(asking or stalled, key=lambda one: one.deadline_s, default=None)

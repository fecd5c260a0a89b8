"""Who of the API's clients has a place, and who makes room for another one.

Root and this process's user are not counted: they may change balloond in other ways, too.
"""

from collections.abc import Iterable

from balloon_daemon.api.client import Client, Phase
from balloon_daemon.api.messages import Rights

MOST, MOST_READERS, MOST_SCRAPERS = 256, 192, 8
"""How many clients are served at a time, how many of them may be clients that may only read, and
how many of them such as may read the metrics alone. Further connections wait to be accepted; a
further client that may only read is refused."""

MOST_OF_USER = 64
"""How many of the clients that may only read may be one user's."""

TAKE_WITHIN_S = 10.0
"""How long a client may receive nothing while its answer waits."""

STALLED_S = 2.0
"""For so long a client has received nothing of its answer that makes room for another one."""

READERS = {Rights.NOTHING, Rights.READ}
"""Clients over a Unix socket that change nothing."""


def why_full(new: Client, clients: Iterable[Client]) -> str:
    """Why a client is refused, a sentence; "": it has a place.

    Args:
        new: the client, which came last.
        clients: all clients, with it.
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
    """Who goes so that a client can be served that came over TCP: the one that has not sent its
    request for the longest time, or else not taken its answer; None: all are at work.

    Over TCP the kernel tells no user, so nobody could have a share there: whoever connects and
    waits would keep Prometheus out.
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

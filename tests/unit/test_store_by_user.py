"""A store that is behind with one user's states keeps no other user's states waiting."""

import asyncio
import socket

from balloon_daemon.handover.store import MANY_WAITING, SocketStore
from tests.harness.faults import fault


@fault("one user has much to say, over however many connections")
def test_store_is_behind_for_the_user_of_whom_much_is_queued_and_for_no_other() -> None:
    async def scene() -> None:
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        store = SocketStore(ours, {}, capacity=10_000, is_keeper=False)
        with theirs:
            for group, user in (("vm1", 1), ("vm2", 1), ("vm3", 2)):
                store.set_user(group, user)
            while store.has_all_of("vm1"):
                store.remove("vm1.1")
            for _ in range(MANY_WAITING):
                store.remove("vm1.1")
            store.remove("vm3.1")
            assert [store.is_behind(group) for group in ("vm1", "vm2", "vm3")] == [1, 1, 0]
            assert [store.is_behind_with(group) for group in ("vm1", "vm2", "vm3")] == [1, 0, 0]
        store.close()

    asyncio.run(scene())

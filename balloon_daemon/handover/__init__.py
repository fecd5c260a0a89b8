"""The VMs' descriptors and states, which another process holds while no controller runs.

QEMU and crosvm never reconnect a vhost-user device: a VM whose socket closes has no balloon until
it is started anew. So every descriptor of a guest is put into a *store* when it arrives, either
systemd's (``FDSTORE=1``) or a small process of balloond's (``fd_keeper``), together with the
guest's state in a sealed memfd. The next controller takes them out and goes on, whether the
controller before it handed over, was killed, or was of an earlier version.

``state`` and ``state_v1`` [pure] encode a guest's state, ``keys`` [pure] the names in a store;
``room`` [pure] counts how many descriptors a guest may have there; ``journal`` records the one
request that a controller has in hand, in case it dies; ``store`` is the Protocol, a store behind a
socket, and a store that keeps nothing; ``systemd_store`` and ``keeper_start`` find or make a
store; ``fd_keeper`` is the small process; ``kept_guests`` reads the VMs that another controller
has left; ``outbox`` queues messages while a store's socket is full.
"""

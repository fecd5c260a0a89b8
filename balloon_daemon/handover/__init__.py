"""What outlives the controller: its guests' descriptors and states, held by another process.

QEMU and crosvm never reconnect a vhost-user device: a VM whose socket closes has no balloon until
it is started anew. So every descriptor of a guest is put into a *store* as it arrives, systemd's
(``FDSTORE=1``) or that of a small process of balloond's (``fd_keeper``), together with the guest's
state in a sealed memfd. The next controller takes them out and goes on, whether the controller
before it made way, was killed, or was of an earlier version.

``state`` and ``state_v1`` [pure] are a guest's state as bytes, ``keys`` [pure] the names in a
store, ``room`` [pure] how many descriptors a guest may have there; ``journal`` is the one request
that a controller may have in hand when it dies; ``store`` is the Protocol, a store behind a socket
and a store that keeps nothing; ``systemd_store`` and ``keeper_start`` find or make one;
``fd_keeper`` is the process; ``kept_guests`` reads what another controller has left.
"""

"""What outlives the controller: its guests' descriptors and state, held by another process.

QEMU and crosvm never reconnect a vhost-user device: a VM whose socket closes has no balloon until
it is started anew. So every descriptor of a guest is put into a *store* as it arrives, systemd's
(``FDSTORE=1``) or a small process of ours (``fd_keeper``), together with the guest's state in a
sealed memfd. The next controller takes them out and goes on, whether the last one was told to
make way, was killed, or was an older version.

``state`` [pure] is the guest's state as bytes; ``journal`` is the one request that may be in the
making when a controller dies; ``store`` is both kinds of store; ``fd_keeper`` is the process.
"""

"""The figures of this host's memory, and the kernel's alarms about it."""

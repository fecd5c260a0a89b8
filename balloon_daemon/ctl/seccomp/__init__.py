"""``balloonctl seccomp``: minijail's policy files checked, explained, tried and traced."""

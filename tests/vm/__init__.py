"""Real Linux guests in QEMU, on a real balloond: what `make test-vm` runs."""

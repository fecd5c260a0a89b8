"""The jailed device: one forked process for each VM, the only one that reads a guest's bytes."""

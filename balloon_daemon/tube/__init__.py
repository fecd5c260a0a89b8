"""The socketpair between the controller and one device: its messages and its two ends."""

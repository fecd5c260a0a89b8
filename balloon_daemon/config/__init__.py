"""The daemon's settings, as values."""

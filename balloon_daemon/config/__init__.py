"""The settings, as values."""

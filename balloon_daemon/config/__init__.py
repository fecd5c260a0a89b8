"""The daemon's settings: as values, and how configuration files are read and checked."""

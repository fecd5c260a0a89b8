"""Readers of events that write them down."""

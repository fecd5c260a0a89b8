"""Readers of events: the log, the history, the trace, and the last events for the API."""

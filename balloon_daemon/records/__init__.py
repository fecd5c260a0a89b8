"""Writes the log: takes events, words them and writes the lines."""

"""Hostile VMMs and guests, for campaigns and for attacks on a running daemon."""

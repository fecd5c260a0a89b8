"""Decides how large each balloon is to be, and why; pure."""

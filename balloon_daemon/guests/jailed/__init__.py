"""Guests whose balloon device is our own, jailed and served over vhost-user."""

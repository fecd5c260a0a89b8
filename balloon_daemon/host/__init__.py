"""What this host says of its memory."""

"""What is written down of what happens."""

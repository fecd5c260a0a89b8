"""Linux from Python: one small typed function for each thing that kernel or libc does for us."""

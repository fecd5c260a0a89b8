"""Linux from Python: one small typed function for each service of the kernel or libc."""

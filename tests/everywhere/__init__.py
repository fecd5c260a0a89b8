"""`make test-everywhere`: the tests and a soak on each Debian, with its Pythons and its glibc."""

"""The Debian package, in clean roots of the Debians that it is for."""

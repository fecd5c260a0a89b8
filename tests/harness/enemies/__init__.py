"""VMMs and guests that mean harm, for campaigns and for attacks on a running daemon."""

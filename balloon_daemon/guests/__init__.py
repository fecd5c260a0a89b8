"""The balloons that balloond moves, by kind of guest."""

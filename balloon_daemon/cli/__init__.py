"""The command line of balloond, and the only place where its parts are put together."""

"""The commands that ask a balloond that runs, over its API."""

"""What tests of several kinds run balloond with: the daemon, its host, waiting."""

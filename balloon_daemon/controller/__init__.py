"""The controller: the main process, which never reads a byte of a guest's memory."""

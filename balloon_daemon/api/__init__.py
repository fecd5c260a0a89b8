"""The API: HTTP with JSON over a Unix socket, served in the controller's event loop."""

"""The demonstration's output, live and as a picture; and pictures of histories and traces."""

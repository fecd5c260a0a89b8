"""The demonstration's output: lines of text, a live chart, a picture."""

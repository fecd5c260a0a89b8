"""The demonstration as it is seen: lines of text, a live chart, a picture."""

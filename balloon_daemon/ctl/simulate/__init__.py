"""``balloonctl simulate``: what other settings would have done on a recorded host."""

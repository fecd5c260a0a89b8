"""``balloonctl demo``: a pretended host that runs low, a real balloond and a fake guest."""

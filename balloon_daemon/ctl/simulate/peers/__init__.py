"""How other projects size balloons, for comparison: each from the rules that it has published."""

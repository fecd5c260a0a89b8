"""The kinds of guests whose balloons balloond can move."""

"""How Hypothesis runs here."""

from hypothesis import settings

# A deadline for each example measures how busy the machine is. The folder's budget is a second a
# test, and what would break it is the number of examples, which each test states.
settings.register_profile("balloond", deadline=None)
settings.load_profile("balloond")

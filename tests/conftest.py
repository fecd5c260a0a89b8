"""How Hypothesis runs here, whichever folder or file is run alone."""

from hypothesis import settings

# A deadline for each example measures how busy the machine is. The folders' budgets are a second
# a test and less, and what would break them is the number of examples, which each test states.
settings.register_profile("balloond", deadline=None)
settings.load_profile("balloond")

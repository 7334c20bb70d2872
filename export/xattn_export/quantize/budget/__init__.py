"""The search for the smallest or fastest mix of modes within a budget of accuracy."""

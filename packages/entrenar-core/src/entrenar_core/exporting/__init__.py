"""A trained model out to what other programs load."""

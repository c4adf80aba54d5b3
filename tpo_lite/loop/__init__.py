"""The whole run: phases in order, back-off, results."""

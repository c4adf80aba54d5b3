"""Evaluation: scores that mean what the leaderboards' mean, with intervals and paired comparisons."""

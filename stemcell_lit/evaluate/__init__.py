"""Scores, intervals, verdicts and entropy, on plain arrays."""

"""Stages, the hierarchy over them, and decoding in time."""

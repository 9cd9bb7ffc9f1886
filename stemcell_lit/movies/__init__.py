"""Frames of movies as they are stored: readers, axes, units, colonies and tracks."""

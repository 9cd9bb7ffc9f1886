"""Frames, colonies, patches, splits, mixing and the data module."""

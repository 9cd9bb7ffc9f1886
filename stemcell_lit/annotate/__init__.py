"""Patches shown in the browser to be sorted."""

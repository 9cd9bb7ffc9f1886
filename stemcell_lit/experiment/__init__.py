"""Cells of the table, artifacts, launching and the report."""

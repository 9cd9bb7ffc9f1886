"""Ground: files, formats, artifacts, processes, progress, drawing. Knows nothing of patches or networks."""

"""What every room stands on: files, processes, artifacts."""

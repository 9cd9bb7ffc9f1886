"""Jobs side by side: on this machine, on Slurm, and in a search."""

"""Ties the server of `warm` to its launcher: imported by the server before everything else."""

from __future__ import annotations

import os

from stemcell_lit.base.processes import end_with_parent

LAUNCHER = "STEMCELL_LIT_LAUNCHER"  # in the server's environment alone: the launcher's process id

if launcher := os.environ.pop(LAUNCHER, ""):
    end_with_parent(int(launcher), watch=False)

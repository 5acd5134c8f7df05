"""Sweeps at work: trials on disk, and what runs them: this machine, SLURM, SkyPilot."""

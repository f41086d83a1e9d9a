"""Disk and devices: run folder, journal, checkpoints, strategies."""

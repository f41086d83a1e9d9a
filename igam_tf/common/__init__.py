"""Shared by all packages and madry_models: errors, the frame of a program, files, locks, devices."""

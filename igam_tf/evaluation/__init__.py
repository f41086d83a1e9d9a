"""Evaluates a finished model: loads it and its images, accuracy under attack, alignment, tables."""

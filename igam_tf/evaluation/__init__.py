"""Evaluates a finished model: accuracy under attack, alignment of gradients, tables."""

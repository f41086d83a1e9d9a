"""A run: its stages, the training loop, and what is watched while it trains."""

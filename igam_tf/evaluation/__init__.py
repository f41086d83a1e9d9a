"""A finished model: which model and images are meant, accuracy under attack, alignment, tables."""

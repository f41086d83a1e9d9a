"""What is run: the settings, their defaults, and the flagfiles that they come from."""

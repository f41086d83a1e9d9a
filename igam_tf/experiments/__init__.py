"""What is run: the settings, their defaults, the paper's rows and the presets."""

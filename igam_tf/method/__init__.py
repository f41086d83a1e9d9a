"""IGAM and the methods it is compared with: train steps, objectives, teacher, discriminator, maps."""

"""Input gradient adversarial matching (IGAM; Chan, Tay, Ong, CVPR 2020) for TensorFlow 2 / Keras 3."""

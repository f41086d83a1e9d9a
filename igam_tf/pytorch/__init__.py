"""Networks of PyTorch: native ports of published architectures, and their weight files."""

"""What several kernels are made of."""

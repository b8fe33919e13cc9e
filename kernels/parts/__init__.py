"""Parts that several kernels share."""

"""Triton kernels of electra_fast, one file per op; imported as `electra_fast.kernels`."""

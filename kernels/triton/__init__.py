"""Triton kernels, one file an op, named as in `accel.kernels`."""

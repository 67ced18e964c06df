"""Tools that check Triton kernels on a machine without a GPU; used by the tests under tests/triton only."""

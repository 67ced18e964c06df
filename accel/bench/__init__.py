"""Benchmark kinds and studies, for `accel bench`: one file a kind of case. Only the command line imports them."""

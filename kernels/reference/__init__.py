"""Readable PyTorch for every op: the oracle of the tests, and the fallback on any device."""

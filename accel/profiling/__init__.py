"""Counting MACs (dense and executed), timing, and the machine record."""

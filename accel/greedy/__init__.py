"""The speed that was asked for at the least loss: a greedy choice of what to keep in which layer, by measured time."""

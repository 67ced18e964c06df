"""A search that takes a moment: what its tests share."""

import accel
from accel import Perforate
from accel.greedy.table import DENSE, Table

CONFIGS = [Perforate(keep=keep, mask="lattice") for keep in (1 / 2, 1 / 4)]
HALF, QUARTER = "lattice 0.5 nearest", "lattice 0.25 nearest"
TABLE = Table(
    {
        "0": {DENSE: 4.0, HALF: 3.0, QUARTER: 2.5},
        "2": {DENSE: 8.0, HALF: 5.0, QUARTER: 3.0},
        "4": {DENSE: 2.0, HALF: 2.5, QUARTER: 2.1},
    },
    rest=1.0,
)


def find(net, pictures, **options):
    options = {"table": TABLE, "candidates": CONFIGS, **options}
    return accel.search(net, example_inputs=pictures[:1], calibration=[pictures], **options)

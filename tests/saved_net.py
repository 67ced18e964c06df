"""A small network whose layers are converted in every way there was, and the folder `tests/data/converted` it gave.

The folder was written once, by `python tests/saved_net.py`, and stays as it is: later versions have to read it.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch import nn

import accel
from accel import Perforate, Rules

FOLDER = pathlib.Path(__file__).parent / "data" / "converted"
SUMS = {"mask": "lattice", "interpolate": "fitted", "neighbors": 4}
WAYS = [
    Perforate(keep=0.5),
    Perforate(keep=0.4, mask="uniform", interpolate="zero", seed=3),
    Perforate(keep=0.5, mask="pooling", interpolate="weighted", neighbors=3),
    Perforate(keep=0.5, shift=1, **SUMS),
    Perforate(keep=0.75, correct="weights", **SUMS),
    Perforate(keep=0.6, mask="impact"),
    Perforate(keep=0.6, mask="iterative_impact"),
    Perforate(keep=0.5, mask="adaptive"),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(len(WAYS)))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = torch.relu(conv(x)) if i % 2 else nn.functional.max_pool2d(conv(x), 3, 1, 1)
        return self.norm(x)


def image(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    torch.manual_seed(0)
    net = Net().eval()
    rules = Rules({f"convs.{i}": config for i, config in enumerate(WAYS)})
    fast = accel.convert_model(net, rules, example_inputs=image(), calibration=[image(2)])
    accel.save_converted(fast, FOLDER)
    with torch.no_grad():
        save_file({"output": fast(image()).contiguous()}, FOLDER / "expected.safetensors")
    print(accel.__file__, FOLDER, file=sys.stderr)

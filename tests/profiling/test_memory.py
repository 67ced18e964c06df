"""The activation meter against sums done by hand."""

import torch
from torch import nn

import accel
from accel import Perforate
from accel.profiling.memory import peak_activation_bytes

MB = 1 << 20


def image(channels=1):
    return torch.ones(1, channels, 512, 512)  # 1 MB a channel


def test_what_lives_at_one_time_counts_once():
    def run():
        x = torch.ones(MB // 4)  # 1 MB
        y = x + 1  # 2 MB live
        del x
        z = y.view(2, -1).mul_(2)  # a view, in place
        return torch.cat([z, z])  # and 2 MB more

    assert peak_activation_bytes(run) == 3 * MB


def test_weights_and_inputs_do_not_count():
    layer, x = nn.Conv2d(1, 4, 3, padding=1), image()
    assert peak_activation_bytes(lambda: layer(x)) == 4 * MB
    assert peak_activation_bytes(lambda: x.relu_()) == 0


def test_a_chain_of_rows_needs_keep_times_the_memory():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    )
    model, x = model.eval(), image()
    fast = accel.convert_model(model, Perforate(keep=0.25, mask="lattice"), example_inputs=x)
    with torch.no_grad():
        fast(x)  # builds the position sets
    dense, rows = (peak_activation_bytes(lambda net=net: net(x)) for net in (model, fast))
    assert dense == 8 * MB
    assert 2 * MB <= rows <= 2.1 * MB

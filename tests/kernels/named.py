"""What torch calls the activations and the paddings that the convolution ops know by name."""

import torch.nn.functional as F

ACTIVATIONS = {
    "none": lambda rows: rows,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
}
PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}

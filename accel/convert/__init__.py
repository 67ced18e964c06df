"""The conversion itself: rules to replaced modules and back, the layout of maps, and the proof of what came out."""

from accel.convert.layers import (
    Conversion,
    assign,
    assign_stages,
    build_sets,
    convert_layers,
    convolutions,
    counted_layers,
    left_dense,
    perforated_layers,
    plain_convolutions,
    revert_model,
    settle_layouts,
    with_pooling,
)

__all__ = [
    "Conversion",
    "assign",
    "assign_stages",
    "build_sets",
    "convert_layers",
    "convolutions",
    "counted_layers",
    "left_dense",
    "perforated_layers",
    "plain_convolutions",
    "revert_model",
    "settle_layouts",
    "with_pooling",
]

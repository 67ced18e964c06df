"""Modules that compute at a position set, and the compact pipeline between them."""

from __future__ import annotations

from accel.nn import layer_op as layer_op  # registers the op that compilers see, before there is a layer

__all__ = ["AdaptiveCell"]


def __getattr__(name: str):
    if name == "AdaptiveCell":  # loaded when it is used: the files of this folder import one another
        from accel.nn.adaptive_cell import AdaptiveCell

        return AdaptiveCell
    raise AttributeError(f"module 'accel.nn' has no attribute {name!r}; public names: {', '.join(__all__)}")

"""Maps that are handed over in bf16: from layers in bf16 to those that alone read them, which would round them anyway.
The numbers are the same either way, in half of the memory."""

from __future__ import annotations

from torch import fx, nn

from accel.nn.graph import module_of, reads_shape
from accel.nn.perforated import PerforatedConv2d

Modules = dict[str, nn.Module]


def pass_bf16(conv: fx.Node, modules: Modules, passed: dict[str, list[str]]) -> None:
    """Let a layer in bf16 know that others in bf16 alone read what it gives, as their input."""
    if not _gives_bf16(modules[conv.target]):
        return
    readers = [user for user in conv.users if not reads_shape(user)]
    if readers and all(_rounds(conv, reader, modules) for reader in readers):
        conv.kwargs = {**conv.kwargs, "is_rounded": True}
        passed[conv.target] = list(dict.fromkeys(reader.target for reader in readers))


def _gives_bf16(layer: PerforatedConv2d) -> bool:
    """Whether what it gives comes from the convolution itself: sums of neighbours are made of numbers in fp32."""
    config = layer.config
    static = config.in_bf16 and config.masking.is_static and not layer.contiguous
    return static and (config.keep == 1 or config.filling.by_nearest)


def _rounds(value: fx.Node, reader: fx.Node, modules: Modules) -> bool:
    """Whether the reader does nothing with the value but multiply it in bf16; adaptive masks look at it too."""
    layer = module_of(reader, modules)
    if not isinstance(layer, PerforatedConv2d) or not layer.config.in_bf16 or not layer.config.masking.is_static:
        return False
    return reader.args[:1] == (value,) and value not in (*reader.args[1:], *reader.kwargs.values())

"""Reading weights from a local file, and writing them: tensors only, never anybody's code."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from accel.errors import WeightsError
from accel.files import write_tensors

_TORCH_SUFFIXES = (".pt", ".pth")
_SHOWN = 3  # names listed in a message


def load_weights(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Load the file at `path` into `model`, in place; values are cast to the model's dtypes.

    The file is .safetensors, or .pt/.pth read with weights_only: a state dict, by itself or under the key
    "state_dict" or "model". Counters of batches seen (`num_batches_tracked`) may be missing.

    Raises:
        WeightsError: the file is missing, unreadable, or does not fit the model.
    """
    path = pathlib.Path(path)
    found = read_tensors(path)
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in found and not k.endswith(".num_batches_tracked")]
    foreign = [k for k in found if k not in wanted]
    if missing or foreign:
        raise WeightsError(
            f"{path} holds the weights of another model than {type(model).__name__}: "
            f"{_some(missing, 'missing')}, {_some(foreign, 'unknown')}: give the weights of this model"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{path} holds {name} of shape {tuple(tensor.shape)}, {type(model).__name__} needs "
                f"{tuple(wanted[name].shape)}: give the weights of this model"
            )
    model.load_state_dict(found, strict=False)  # strict would refuse files without num_batches_tracked
    return model


def load_part(model: nn.Module, whole: nn.Module) -> nn.Module:
    """Load into `model`, in place, what `whole` holds under the same names: a network that lacks some of its layers.

    Raises:
        WeightsError: `whole` has no tensor of a name and shape that `model` needs.
    """
    wanted, found = model.state_dict(), whole.state_dict()
    foreign = [name for name, tensor in wanted.items() if name not in found or found[name].shape != tensor.shape]
    if foreign:
        lacking = _some(foreign, "missing or of another shape")
        raise WeightsError(f"{type(model).__name__} is no part of {type(whole).__name__}: {lacking} in that")
    model.load_state_dict({name: found[name] for name in wanted})
    return model


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The named tensors of a .safetensors, .pt or .pth file.

    Raises:
        WeightsError: no such file, an unknown suffix, or a file that is damaged or holds more than tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}: give the path of a .safetensors or .pt file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _read_torch(path)
    raise WeightsError(f"{path} has the suffix {path.suffix!r}: weights are read from .safetensors, .pt or .pth")


def _read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}): fetch or save it again") from error


def _read_torch(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights can raise anything: struct.error, IndexError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} cannot be read as a file of tensors ({reason}): save it with torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict: save it with torch.save(model.state_dict(), path)")
    return dict(state)


def save_half(model: nn.Module, path: str | os.PathLike) -> None:
    """Write the model's state as safetensors, floating-point tensors in float16."""
    halves = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    write_tensors(pathlib.Path(path), halves)


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names)} {what}" + (f" ({shown}{', ...' if len(names) > _SHOWN else ''})" if names else "")

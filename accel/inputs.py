"""What a model is called with: example inputs and batches of data, in the forms that users have them.

A bare tensor is one batch. A batch is a tensor, a dict of keyword arguments, or a tuple: of a network with one required
input its first element is that input, so that the (x, label) of data sets fit; of one with several its first elements
are they.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from accel.errors import DataError

Inputs = Tensor | tuple | Mapping  # what a model is called with: see `as_batch`


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One call of a model, and what the data brings beside it.

    Attributes:
        args, kwargs: what the model is called with.
        rest: labels and whatever else follows the inputs.
    """

    args: tuple = ()
    kwargs: Mapping[str, object] = dataclasses.field(default_factory=dict)
    rest: tuple = ()

    def __len__(self) -> int:
        """Pictures: the length of the first input that has one."""
        for value in self._values:
            if _is_list(value):
                return len(value)
            for tensor in tensors_of(value):
                if tensor.dim():
                    return len(tensor)
        return 1

    @property
    def _values(self) -> tuple:
        return (*self.args, *self.kwargs.values())

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the inputs, in order."""
        return tensors_of(self._values)

    @property
    def pixels(self) -> int:
        """Positions of one picture: of [N, C, H, W], H * W."""
        first = self.tensors[0]
        return max(math.prod(first.shape[-2:] if first.dim() == 3 else first.shape[2:]), 1)

    @property
    def given(self) -> tuple | dict:
        """The batch as a tuple (inputs, labels, ...) or the dict of keyword arguments: what a caller's loss gets."""
        return dict(self.kwargs) if self.kwargs else (*self.args, *self.rest)

    @property
    def inputs(self) -> tuple | dict:
        """What `as_batch` and `batches` make the same call of again."""
        return dict(self.kwargs) if self.kwargs else self.args

    @property
    def labels(self) -> object:
        """What follows the inputs, or None."""
        return self.rest[0] if self.rest else None

    def run(self, model: Callable) -> object:
        """The model's outputs."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[object], object]) -> Batch:
        """The batch with every input, and what comes with them, changed."""
        kwargs = {name: change(value) for name, value in self.kwargs.items()}
        return Batch(tuple(map(change, self.args)), kwargs, tuple(map(change, self.rest)))

    def part(self, start: int, end: int | None, step: int = 1) -> Batch:
        """Pictures `start` to `end`, every `step`-th; what does not count the pictures stays whole."""
        whole = len(self)
        return self.map(lambda value: value[start:end:step] if _counts(value, whole) else value)

    def described(self) -> str:
        """Types and shapes of the tensors, for a message."""
        return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in self.tensors)


def tensors_of(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def as_batch(example_inputs: Inputs) -> Batch:
    """The call that example inputs stand for: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        DataError: anything else, or no tensor in it.
    """
    given = example_inputs
    if isinstance(given, Tensor):
        return Batch((given,))
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given) and tensors_of(dict(given)):
        return Batch(kwargs=dict(given))
    if isinstance(given, tuple) and tensors_of(given):
        return Batch(given)
    raise DataError(
        f"example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
        f"got {type(given).__name__}"
    )


def batches(data: object, model: Callable, name: str = "calibration") -> Iterator[Batch]:
    """The batches of calibration or training data, for a model.

    Args:
        data: a re-iterable of batches, or a bare tensor or dict, which is one.
        name: what the data is, for messages.

    Raises:
        DataError: not iterable, empty, a batch of another form, or one that holds NaN or infinity.
    """
    if not hasattr(data, "__iter__"):
        raise DataError(f"the {name} data must be iterable, got {type(data).__name__}")
    wanted, count = required_inputs(model), 0
    for given in _list_of(data):
        count += 1
        yield _batch(given, wanted, f"batch {count} of the {name} data")
    if count == 0:
        raise DataError(f"the {name} data is empty: give at least one batch (and a list or loader, not a generator)")


def _list_of(data: Iterable) -> Iterable:
    return [data] if isinstance(data, (Tensor, Mapping)) else data


def counted(data: Iterable | None, model: Callable, example_inputs: Inputs) -> Iterable | None:
    """The data, where the model's forward does not say how many inputs it takes: as many of each batch as the example.

    It is for `batches`, which raises where anything is wrong with it.
    """
    if not hasattr(data, "__iter__") or required_inputs(model) is not None:
        return data
    return _Counted(data, len(as_batch(example_inputs).args))


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Data of which `wanted` elements of each batch are inputs."""

    data: Iterable
    wanted: int

    def __iter__(self) -> Iterator[Batch]:
        for count, given in enumerate(_list_of(self.data), 1):
            yield _batch(given, self.wanted, f"batch {count} of the data")


def batch_for(model: Callable, given: object) -> Batch:
    """One batch of data, for a model; DataError as of `batches`."""
    return _batch(given, required_inputs(model), "the batch")


def _batch(given: object, wanted: int | None, name: str) -> Batch:
    if isinstance(given, Batch):
        return given
    if isinstance(given, Mapping):
        if not all(isinstance(key, str) for key in given):
            raise DataError(f"{name} is a dict: its keys must be names of the model's arguments")
        batch = Batch(kwargs=dict(given))
    else:
        elements = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if wanted is None and len(elements) > 1:
            raise DataError(
                f"{name} has {len(elements)} elements, and a forward that takes *inputs does not say how many of them "
                "are its inputs: give its arguments names, or the inputs alone"
            )
        wanted = len(elements) if wanted is None else wanted
        batch = Batch(elements[:wanted], rest=elements[wanted:])
        if len(batch.args) < wanted:
            raise DataError(f"{name} has {len(batch.args)} of the {wanted} inputs that the model takes")
        odd = next((value for value in batch.args if not tensors_of(value)), None)
        if odd is not None:
            raise DataError(
                f"{name} must be a tensor, a dict, or a tuple that starts with the inputs, got {_kind(odd)}"
            )
    if not batch.tensors:
        raise DataError(f"{name} holds no tensor")
    if not all(tensor.isfinite().all() for tensor in batch.tensors if tensor.is_floating_point()):
        raise DataError(f"{name} holds NaN or infinity: leave such pictures out")
    return batch


def required_inputs(model: Callable) -> int | None:
    """Positional arguments that the model's forward cannot do without, at least 1; None where it takes any number."""
    while isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):  # wrappers of the network that is called
        model = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
    try:
        parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    except (TypeError, ValueError):  # a compiled forward has no signature
        return 1
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(each.kind in positional and each.default is each.empty for each in parameters))


def first_pictures(found: Iterable[Batch], count: int) -> Batch:
    """The first `count` pictures, or all, as one batch.

    Raises:
        DataError: batches that do not join, such as pictures of several sizes.
    """
    parts, taken = [], 0
    for batch in found:
        parts.append(batch.part(0, count - taken) if len(batch) > count - taken else batch)
        taken += len(parts[-1])
        if taken >= count:
            break
    return joined(parts)


def joined(parts: Sequence[Batch]) -> Batch:
    """The pictures of several batches as one; DataError: they do not join."""
    if len(parts) == 1:
        return parts[0]
    form = {(len(part.args), tuple(part.kwargs), len(part.rest)) for part in parts}
    if len(form) > 1:
        raise DataError("the batches of the calibration data have different inputs: give all of them the same")
    lengths = [len(part) for part in parts]
    columns = [_joined(column, lengths) for column in zip(*((*part._values, *part.rest) for part in parts))]
    positional, named = len(parts[0].args), len(parts[0].kwargs)
    kwargs = dict(zip(parts[0].kwargs, columns[positional : positional + named]))
    return Batch(tuple(columns[:positional]), kwargs, tuple(columns[positional + named :]))


def _joined(values: Sequence, lengths: Sequence[int]) -> object:
    first = values[0]
    if all(map(_counts, values, lengths)):
        if isinstance(first, list):
            return [each for value in values for each in value]
        if len({value.shape[1:] for value in values}) == 1:
            return torch.cat(list(values))
        shapes = list(dict.fromkeys(tuple(value.shape[1:]) for value in values))
        raise DataError(f"pictures of one size are needed, got {shapes[:2]}: resize them")
    if all(_same(value, first) for value in values):
        return first
    raise DataError(
        f"inputs of type {_kind(first)} differ between batches and have no row for each picture: give a single batch"
    )


def _counts(value: object, pictures: int) -> bool:
    """Whether a value has one row, or entry, for each picture."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == pictures
    return isinstance(value, list) and len(value) == pictures and (_is_list(value) or not tensors_of(value))


def _is_list(value: object) -> bool:
    """Whether a value is a list of pictures, which may differ in size, rather than of maps [N, C, H, W]."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) and v.dim() < 4 for v in value)


def _same(value: object, other: object) -> bool:
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return isinstance(value, Tensor) and isinstance(other, Tensor) and torch.equal(value, other)
    return type(value) is type(other) and value == other


def _kind(value: object) -> str:
    return type(value).__name__

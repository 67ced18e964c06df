"""Running a model on example inputs without leaving a trace in it, and watching its convolutions while it runs."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module
from torch.utils._pytree import tree_leaves, tree_map_only

from accel.errors import ConversionError
from accel.inputs import Inputs, as_batch

ONE_BY_ONE = contextvars.ContextVar("accel_one_by_one", default=False)


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Within the block, converted models run module by module, nothing fused and nothing compact."""
    token = ONE_BY_ONE.set(True)
    try:
        yield
    finally:
        ONE_BY_ONE.reset(token)


def is_exporting() -> bool:
    """Whether torch.export is at work: what `torch.compiler.is_exporting` says of late. In torch 2.8 that is true in
    whatever is compiled as well."""
    return torch.compiler._is_exporting_flag


@contextlib.contextmanager
def run_eagerly() -> Iterator[None]:
    """Within the block compiled modules run as they were written: who looks into a model replaces calls for a while."""
    compiles = "torch._dynamo" in sys.modules  # else nothing was compiled; importing it takes 2 s
    with torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block, as `evaluated` sets it; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    try:
        evaluated(model)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluated(model: nn.Module) -> nn.Module:
    """The model, put into evaluation mode. Exported programs, alone or as parts of it, stay in the mode that they were
    exported in.

    Raises:
        NotImplementedError: the model's own, where a part that is no such program refuses its mode.
    """
    try:
        model.eval()
    except NotImplementedError:  # torch's, of an exported program: what comes behind that was left out
        for child in model.children():
            evaluated(child)
        if model.training and not isinstance(model, fx.GraphModule):
            raise
    return model


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Buffers that are written to within the block get back the values that they had: a forward may count its calls."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A look at the model: in evaluation and without gradients; its state and torch's random numbers stay."""
    with evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]), state_kept(model):
        yield


def observer(forward: Callable, around: Callable[[Callable], Callable]) -> Callable:
    """`around(forward)`, a function that only watches: converted models run fused with it in a forward's place.

    Where they run something else instead of that forward, they wrap it in `around` too.
    """
    run = around(forward)
    run.observes_only, run.around = True, around
    return run


def is_globally_watched() -> bool:
    """Whether a hook on all modules of the process wants them to be called."""
    return bool(nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)


@contextlib.contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Within the block, each of the modules runs the given function as its forward; afterwards its own again."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            del module.forward
            if before is not None:
                module.forward = before


def run_on(model: nn.Module, example_inputs: Inputs) -> object:
    """The model's outputs for copies of the inputs: a forward may write to what it gets."""
    return as_batch(example_inputs).map(cloned).run(model)


def copied(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A deep copy, which has the very `shared` tensors and storage of its own for all others.

    Pruned layers, and those with torch's weight norm of before, keep a weight that was worked out under autograd, which
    torch refuses to copy: here the copy gets its value, and works it out anew when it is called. Feature extractors of
    torchvision lose their mode, and with it their graph: here every module keeps its own.
    """
    memo = {id(tensor): tensor for tensor in shared}
    with torch.inference_mode(False):  # else nobody would count the writes to the copy's tensors
        for value in (value for module in model.modules() for value in vars(module).values()):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        made = copy.deepcopy(model, memo)
    modes = {
        twin: module.training for module, twin in zip(model.modules(), made.modules()) if hasattr(module, "training")
    }
    if made.training != model.training:
        made.train(model.training)
    for twin, training in modes.items():
        twin.training = training
    return made


def cloned(values: object) -> object:
    """Nested values with a copy of every tensor in them."""
    return tree_map_only(Tensor, torch.clone, values)


def output_tensors(outputs: object) -> list[Tensor]:
    """Every tensor in a model's outputs, in order; in containers of kinds that torch's pytree does not know as well."""
    found = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += output_tensors(list(leaf.values()))
        elif isinstance(leaf, Iterable) and not isinstance(leaf, (str, bytes)):
            found += output_tensors(list(leaf))
    return found


def floating_tensors(outputs: object) -> list[Tensor]:
    """Those of them that are floating."""
    return [tensor for tensor in output_tensors(outputs) if tensor.is_floating_point()]


def first_tensor(outputs: object) -> Tensor:
    """The first tensor of a model's outputs.

    Raises:
        ConversionError: there is none.
    """
    found = output_tensors(outputs)
    if not found:
        raise ConversionError(
            f"the model returned {type(outputs).__name__}, expected a tensor or a tuple or dict of them"
        )
    return found[0]


def has_labels(outputs: object, labels: object) -> bool:
    """Whether what follows the inputs of a batch are integer labels [N], for outputs that are logits [N, classes]."""
    labelled = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labelled and [tensor.dim() for tensor in floating_tensors(outputs)[:1]] == [2]


def run_watched(model: nn.Module, x: Inputs, hooks: Iterable[tuple[nn.Module, Callable]]) -> None:
    """Run the model once on x, in evaluation and without gradients, layer by layer as it was written, some of its
    modules with a forward hook."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        with evaluation(model), run_eagerly(), one_by_one(), torch.inference_mode():
            as_batch(x).run(model)
    finally:
        for handle in handles:
            handle.remove()


def record_calls(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    example_inputs: Inputs,
    inputs_of: Mapping[str, nn.Module] | None = None,
) -> dict[str, list[tuple[int, ...]]]:
    """Run the model once, in evaluation and without gradients: the output shape of every call of each of `layers`.

    The shape of an output that is not a tensor is (). Of the modules in `inputs_of`, it is the shape of their input.

    Raises:
        ConversionError: the model cannot run on the example.
    """
    others = inputs_of or {}
    calls: dict[str, list[tuple[int, ...]]] = {name: [] for name in [*layers, *others]}

    def watch(name: str):
        def hook(_module: nn.Module, inputs: tuple, output: object) -> None:
            calls[name].append(tuple(getattr(next(iter(inputs), None) if name in others else output, "shape", ())))

        return hook

    batch = as_batch(example_inputs)
    handles = [layer.register_forward_hook(watch(name)) for name, layer in [*layers.items(), *others.items()]]
    try:
        with undisturbed(model):
            batch.map(cloned).run(model)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ConversionError(f"the model cannot run on example_inputs ({batch.described()}): {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls

"""What is checked of a network that others wrote: drawn weights that hide no fault, an oracle of torch's own
convolutions, and one number, or the reason why there is none, for every promise of a conversion."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import accel
from accel import ops
from accel.bench.foreign_nets import Foreign, build
from accel.convert import perforated_layers
from accel.nn.inference import installed
from accel.nn.perforated import PerforatedConv2d
from accel.profiling.distances import relative_norms
from accel.running import one_by_one, replaced_forwards

TOLERANCE = 1e-4  # relative norm, worst output; errors of the layers add up along the network
EQUAL = 1e-6  # the same numbers by the same code
LIMITS = {
    "keep_1": TOLERANCE,
    "half": TOLERANCE,
    "fitted": 1.0 + TOLERANCE,
    "saved": EQUAL,
    "copied": EQUAL,
    "reverted": TOLERANCE,
    "other_size": TOLERANCE,
    "fitted_other_size": TOLERANCE,
}
# The size of outputs of one position, most of which are gates. At size 1 the gated units of efficientnetv2_rw_t, half
# of each filled in, raise float32's rounding to 1e-3 in torch's own convolutions; at 0.1 it stays at 1e-5.
_GATE = 0.1
_EXAMPLES = 2  # pictures that the numbers are compared on


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Float [N, 3, H, W] each, normalised: `seen` to fit on, `unseen` to judge by, `other` of another size."""

    seen: Tensor
    unseen: Tensor
    other: Tensor


def check(name: str, pictures: Pictures, seed: int) -> dict[str, object]:
    """The columns of a row.

    What LIMITS names: a number, infinite where there is none, None where it cannot be asked; the losses that `fitted`
    is the quotient of; `fast`, the share of the perforated layers that ran in rewritten parts, and in `outside` why the
    others did not; `correct`; and in `reason` all that is not.
    """
    torch.manual_seed(seed)
    network = build(name, seed)
    draw(network, torch.cat([pictures.seen, pictures.unseen]), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return _Checks(name, network, pictures, seed).row()


class _Checks:
    """The checks of one network; what several need is made once."""

    def __init__(self, name: str, network: Foreign, pictures: Pictures, seed: int) -> None:
        self.name, self.network, self.pictures, self.seed = name, network, pictures, seed
        self.model, self.read = network.model, network.read
        self.examples = network.inputs(pictures.seen[:_EXAMPLES])
        self.dense = self.read(self.model, self.examples)
        self.reasons: dict[str, str] = {}
        self._losses: dict[str, float] = {}

    @functools.cached_property
    def half(self) -> nn.Module:
        return self._convert(accel.Perforate(keep=0.5, mask="lattice", seed=self.seed))

    @functools.cached_property
    def fitted(self) -> nn.Module:
        config = accel.Perforate(keep=0.5, mask="lattice", interpolate="fitted", seed=self.seed)
        batches = self.pictures.seen.split(_EXAMPLES)
        return self._convert(config, calibration=list(map(self.network.inputs, batches)))

    @functools.cached_property
    def richest(self) -> nn.Module:
        """The fitted one, as it carries most; the other one where it cannot be fitted."""
        return self.half if "fitted" in self.reasons else self.fitted

    def _convert(self, config: accel.Perforate, **options: object) -> nn.Module:
        return accel.convert_model(self.model, config, example_inputs=self.examples, **options)

    def row(self) -> dict[str, object]:
        found = {check: self._attempt(check) for check in LIMITS}
        for check, value in found.items():
            if value is not None and not value <= LIMITS[check]:
                self.reasons.setdefault(check, f"{value:.3g}")
        row = {**found, **self._losses, "fast": None, "outside": ""}
        if "half" not in self.reasons:
            row["fast"], row["outside"] = rewritten(self.half, lambda: self.read(self.half, self.examples))
        reason = "; ".join(f"{check}: {text}" for check, text in self.reasons.items())
        return {**row, "correct": not reason, "reason": reason}

    def _attempt(self, check: str) -> float | None:
        """What a check finds; where it raised, infinity and the reason: a network that fails is a row, not the end."""
        try:
            return getattr(self, f"_{check}")()
        except Exception as error:
            self.reasons[check] = one_line(error)
            return math.inf

    def _keep_1(self) -> float:
        return worst(self.read(self._convert(accel.Perforate(keep=1.0)), self.examples), self.dense)

    def _half(self) -> float:
        return self._against_oracle(self.examples)

    def _other_size(self) -> float | None:
        return self._at_other_size(self._against_oracle)

    def _against_oracle(self, arguments: tuple) -> float:
        with filled_by_nearest(self.model, self.half):
            expected = self.read(self.model, arguments)
        return worst(self.read(self.half, arguments), expected)

    def _fitted(self) -> float:
        ours, nearest = (self._loss(model) for model in (self.fitted, self.half))
        self._losses = {"loss_nearest": nearest, "loss_fitted": ours}
        return ours / nearest

    def _loss(self, model: nn.Module) -> float:
        """Mean over the outputs of the relative distance to the dense ones, on pictures that were not fitted on."""
        arguments = self.network.inputs(self.pictures.unseen)
        errors = relative_norms(self.read(model, arguments), self.read(self.model, arguments))
        return sum(errors) / len(errors)

    def _fitted_other_size(self) -> float | None:
        if "fitted" in self.reasons:
            return None
        return self._at_other_size(self._fitted_against_reference)

    def _fitted_against_reference(self, arguments: tuple) -> float:
        """At a size that was not fitted at: after the fitted one, against the reference that knows this size only."""
        fresh = copy.deepcopy(self.fitted)
        self.read(self.fitted, self.examples)
        with one_by_one(), ops.use_backend("reference"):
            expected = self.read(fresh, arguments)
        return worst(self.read(self.fitted, arguments), expected)

    def _at_other_size(self, compare: Callable[[tuple], float]) -> float | None:
        arguments = self.network.inputs(self.pictures.other[:_EXAMPLES])
        try:
            self.read(self.model, arguments)
        except Exception:  # a stranger's network says in its own way that it does not take this size
            return None
        return compare(arguments)

    def _saved(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            accel.save_converted(self.richest, folder)
            loaded = accel.load_converted(folder, build(self.name, self.seed + 1).model)
        return self._against_richest(loaded)

    def _copied(self) -> float:
        return self._against_richest(copy.deepcopy(self.richest))

    def _against_richest(self, model: nn.Module) -> float:
        return worst(self.read(model, self.examples), self.read(self.richest, self.examples))

    def _reverted(self) -> float:
        return worst(self.read(accel.revert_model(self.richest), self.examples), self.dense)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def draw(network: Foreign, pictures: Tensor, generator: torch.Generator) -> None:
    """Draw what initialisers leave alike, and keep the activations in a sane range, by one run on the pictures.

    Constant parameters (norms, biases, layer scales, gains, the zeros that end residual units) hide a wrong folding or
    a lost addend. Running statistics become those of the pictures, each moved a little; convolutions and linear layers
    get weights of a size that lets their output be of size 1, so that nothing drowns in the biases of a deep network.
    """

    def move_statistics(norm: nn.Module, inputs: tuple) -> None:
        others = [dim for dim in range(inputs[0].dim()) if dim != 1]
        mean, variance = inputs[0].mean(others), inputs[0].var(others, correction=0)
        variance = variance.clamp_min(0.1 * float(variance.mean()) + 1e-6)
        norm.running_mean.copy_(mean + 0.2 * variance.sqrt() * torch.randn(mean.shape, generator=generator))
        norm.running_var.copy_(variance * (0.5 + 1.5 * torch.rand(mean.shape, generator=generator)))

    def scale_weight(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        channels = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1)
        size = float((channels if layer.bias is None else channels - layer.bias).square().mean().sqrt())
        if size < 1e-6:
            return None
        wanted = _GATE if channels[0, ..., 0].numel() == 1 else 1.0
        layer.weight.mul_(wanted / size)
        return layer.forward(*inputs)

    handles = []
    with torch.no_grad():
        for module in network.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and _is_constant(parameter):
                    parameter.copy_(_drawn(name, parameter, generator))
            if isinstance(getattr(module, "running_var", None), Tensor):
                handles.append(module.register_forward_pre_hook(move_statistics))
            elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and "weight" in module._parameters:
                handles.append(module.register_forward_hook(scale_weight))
        network.read(network.model, network.inputs(pictures))
    for handle in handles:
        handle.remove()


def _is_constant(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all())


def _drawn(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if "bias" in name:
        return 0.2 * torch.randn(parameter.shape, generator=generator)
    ending = 0.2 if not parameter.any() else 1.0  # zeros end a residual unit: deep networks rely on it adding little
    return ending * (0.5 + torch.rand(parameter.shape, generator=generator))


@contextlib.contextmanager
def filled_by_nearest(model: nn.Module, fast: nn.Module) -> Iterator[None]:
    """Within the block the dense `model` computes what `fast`, made from it with nearest filling, should: torch's own
    convolution in full, then the value of the position that stands in, at every position."""

    def run(conv: nn.Conv2d, layer: PerforatedConv2d, x: Tensor) -> Tensor:
        full = nn.Conv2d.forward(conv, x)
        positions = layer.position_set(*full.shape[-2:], full.device)
        return full.flatten(-2)[..., positions.positions[positions.nearest].long()].reshape(full.shape)

    with replaced_forwards(
        {
            model.get_submodule(name): functools.partial(run, model.get_submodule(name), layer)
            for name, layer in perforated_layers(fast).items()
        }
    ):
        yield


def worst(got: object, expected: object) -> float:
    """The greatest of the `relative_norms`."""
    return max(relative_norms(got, expected))


def rewritten(fast: nn.Module, run: Callable[[], object]) -> tuple[float, str]:
    """The share of the perforated layers that lie in parts whose rewritten path runs within `run()`, and in one line
    why the others do not."""
    run()  # copies and changed models are traced at their first call
    paths = [path for _, path in installed(fast) if path.rewritten is not None]
    own, ran = [path.plan for path in paths], set()

    def watch(root: nn.Module, forward: Callable) -> Callable:
        def watched(*arguments: object) -> object:
            ran.update(layer for layer in root.modules() if isinstance(layer, PerforatedConv2d))
            return forward(*arguments)

        return watched

    try:
        for path in paths:
            code, shortened = (watch(path.root, form) for form in (path.rewritten.code, path.rewritten.fast))
            rewritten = dataclasses.replace(path.rewritten, code=code, fast=shortened)
            path.plan = dataclasses.replace(path.plan, rewritten=rewritten)
        run()
    finally:
        for path, plan in zip(paths, own):
            path.plan = plan
    layers = perforated_layers(fast)
    outside = [name for name, layer in layers.items() if layer not in ran]
    parents = {type(parent): parent for parent in (fast.get_submodule(name.rpartition(".")[0]) for name in outside)}
    reasons = [f"{kind.__name__} ({_why_untraced(parent)})" for kind, parent in parents.items()]
    return 1 - len(outside) / len(layers), "; ".join(reasons[:3])


def _why_untraced(module: nn.Module) -> str:
    try:
        torch.fx.Tracer().trace(module)
    except Exception as error:  # whatever a stranger's forward raises on proxies
        return one_line(error)[:100]
    return "traces, but is not called as a whole, or says more than its graph"

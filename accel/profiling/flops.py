"""Multiply-accumulates of convolutions and linear layers: what was executed, and what dense execution would take.

Counted while the model runs, op by op as torch dispatches them, so that functional calls, shared modules, scripted and
converted layers all show. A product of matrices is a linear layer if one side is made of the model's own parameters and
buffers alone. Everything else (normalisation, activations, pooling, the products of attention, element-wise scaling)
counts nothing. FLOPs = 2 x MACs.

What multiplies by weights and cannot be counted is named: in `LayerMacs.uncounted`, and in a warning of `count_macs`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from accel.errors import AccelError
from accel.inputs import Inputs, as_batch
from accel.kernels.counting import FVCORE_HANDLES, Work
from accel.profiling.mac_formulas import FORMULAS, NOTHING, PRODUCTS, UNKNOWN, product
from accel.running import evaluation, run_eagerly

_TORCH_LIBRARIES = ("aten", "prim", "prims", "accel", "profiler", "c10d", "_c10d_functional")


@dataclasses.dataclass
class LayerMacs:
    """Attributes: name, full module name ("" for ops outside any submodule); kind, class of the module; dense and
    executed, MACs of all its calls over the batch; uncounted, the ops in it that multiply by weights and could not be
    counted."""

    name: str
    kind: str
    dense: int = 0
    executed: int = 0
    uncounted: tuple[str, ...] = ()


class SavesMacs:
    """A base of modules that may execute fewer MACs than their dense forms."""

    def facts(self) -> dict[str, str | None]:
        """What a row of a report says of how: `mask`, `interpolate`, `precision` and `note`, as far as they apply."""
        return {}


class SelfAccounting(SavesMacs):
    """A base of modules that decide per image what to run: what they `account` for counts, not the ops in them."""

    def account(self, executed: Tensor, dense: int) -> None:
        """Tell the counts under way, in a call of the module, what this call executed, int64 [N], and what every image
        would take if it ran densely."""
        if torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
            return
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, _Counter):
                mode.account(executed, dense)


def count_macs(model: nn.Module, x: Inputs, per_image: bool = False) -> int | Tensor:
    """Executed MACs of convolutions and linear layers when `model` runs on `x`; warns of what could not be counted.

    Args:
        x: the input [N, ...], a tuple of arguments that starts with it, or a dict of keyword arguments.
        per_image: return int64 [N] instead of the total.

    Raises:
        AccelError: per_image, and a layer runs on a batch whose size is no multiple of N.
    """
    counter = _run(model, x)
    _warn_of_uncounted(counter)
    return counter.per_image() if per_image else counter.total()


def macs_of_images(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """Executed MACs of every layer, by its full name, for each image of some batches: int64 [images]; warns of what
    could not be counted.

    Raises:
        AccelError: no batch, or layers whose MACs cannot be told apart by image.
    """
    counter, found = None, []
    for batch in batches:
        counter = _run(model, batch)
        found.append(counter.per_image_and_layer())
    if counter is None:
        raise AccelError("MACs are spread over images: give at least one batch of them")
    _warn_of_uncounted(counter)
    names = dict.fromkeys(name for counts in found for name in counts)
    parts = [(counts, torch.zeros_like(next(iter(counts.values())))) for counts in found if counts]
    return {name: torch.cat([counts.get(name, none) for counts, none in parts]) for name in names}


def spread(counts: Tensor) -> dict[str, float]:
    """How the MACs of images differ, [images]: `images`, their `mean` and standard `deviation`, and the quantiles `5%`,
    `50%` and `95%`, linearly interpolated."""
    found = counts.double()
    ends = torch.quantile(found, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64, device="cpu")).tolist()
    moments = {"images": len(found), "mean": float(found.mean()), "deviation": float(found.std(correction=0))}
    return {**moments, **dict(zip(("5%", "50%", "95%"), ends))}


def layer_macs(model: nn.Module, x: Inputs) -> list[LayerMacs]:
    """Dense and executed MACs per module, in the order of their first call; the sums are those of the network."""
    return list(_run(model, x).layers.values())


def _warn_of_uncounted(counter: _Counter) -> None:
    missed = uncounted(counter.layers.values())
    if missed:
        warnings.warn(f"MACs not counted: {missed}; the count is too low", stacklevel=3)


def uncounted(layers: Iterable[LayerMacs]) -> str:
    """What could not be counted in which layer, "" for nothing."""
    return ", ".join(f"{op} in {layer.name or 'the model'}" for layer in layers for op in layer.uncounted)


def static_macs(model: nn.Module, x: Tensor | tuple) -> int:
    """MACs by fvcore's static analysis of the traced graph: an independent count, for models that trace.

    Layers with a data-dependent number of positions count at their capacity.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore and the tracer warn about their own use of torch.jit
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, x).set_op_handle(**FVCORE_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.no_grad():
            counts = analysis.by_operator()
    return int(sum(counts[op.rpartition(":")[2]] for op in ("conv", "linear", *FVCORE_HANDLES)))


def _run(model: nn.Module, x: Inputs) -> _Counter:
    """Run the model once in evaluation, under a counter."""
    batch = as_batch(x)
    counter = _Counter(model, len(batch))
    handles = counter.watch(model)
    try:
        # In inference mode convolutions and linear layers reach the counter whole, not as addmm, which others use too;
        # compiled modules run as they were written, not as code that nobody can look into.
        with evaluation(model), run_eagerly(), torch.inference_mode(), counter:
            batch.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return counter


class _Counter(TorchDispatchMode):
    """Adds up the work of every op that has a formula, under the innermost module that called it."""

    def __init__(self, model: nn.Module, images: int) -> None:
        super().__init__()
        self.images = images
        self.layers: dict[str, LayerMacs] = {}
        self._works: list[tuple[str, Work]] = []  # of which layer
        self._stack: list[tuple[str, str]] = [("", "")]
        self._silent = 0  # depth of modules that account for themselves
        self._fixed = _Fixed([*model.parameters(), *model.buffers(), *_frozen(model)])

    def watch(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks: its ops count where it is called
                code = _code(module)
                if code is not None and code.findNode("prim::mkldnn_convolution"):  # no op that torch dispatches
                    self._name("prim.mkldnn_convolution")
                continue
            own = isinstance(module, SelfAccounting)

            def enter(module: nn.Module, _args: tuple, name: str = name, own: bool = own) -> None:
                self._stack.append((name, type(module).__name__))
                self._silent += own

            def leave(module: nn.Module, _args: tuple, _out: object, own: bool = own) -> None:
                self._silent -= own
                self._stack.pop()

            enter.observes_only = leave.observes_only = True  # fused inference may go on: see accel.nn.inference
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        return handles

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        names = str(func), str(func._overloadpacket)
        formula = next((FORMULAS[name] for name in names if name in FORMULAS), None)
        operands, known = PRODUCTS.get(names[1]), names[1] in UNKNOWN
        if formula is None and operands is None and not known and names[1] not in NOTHING:
            with self:
                taken_apart = func.decompose(*args, **kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
        out = func(*args, **kwargs)
        given = tree_leaves((args, kwargs))
        if formula is not None:
            self._add(formula(args, out))
        elif operands is not None:
            self._add_product(names[1], *(args[k] for k in operands))
        elif known or (func.namespace not in _TORCH_LIBRARIES and self._fixed.has_weights(given)):
            self._name(names[1])
        self._fixed.follow(given, out, is_layer=formula is not None)
        return out

    def account(self, executed: Tensor, dense: int) -> None:
        if self._silent == 1:  # within another that accounts for itself, that one says it all
            self._record(Work(len(executed), executed, len(executed) * dense))

    def _add_product(self, op: str, left: Tensor, right: Tensor) -> None:
        sides = [self._fixed.is_own(left), self._fixed.is_own(right)]
        if None in sides:
            self._name(op)
        elif sides in ([True, False], [False, True]):
            self._add(product(left, right))

    def _add(self, work: Work) -> None:
        if not self._silent:
            self._record(work)

    def _record(self, work: Work) -> None:
        layer = self._layer()
        layer.dense += work.dense
        layer.executed += work.total
        self._works.append((layer.name, work))

    def _name(self, op: str) -> None:
        if not self._silent and op not in self._layer().uncounted:
            self._layer().uncounted += (op,)

    def _layer(self) -> LayerMacs:
        name, kind = self._stack[-1]
        return self.layers.setdefault(name, LayerMacs(name, kind))

    def total(self) -> int:
        return sum(work.total for _, work in self._works)

    def per_image(self) -> Tensor:
        none = torch.zeros(self.images, dtype=torch.int64, device="cpu")
        return sum(self.per_image_and_layer().values(), none)

    def per_image_and_layer(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, work in self._works:
            found[name] = found.get(name, 0) + self._by_image(work)
        return found

    def _by_image(self, work: Work) -> Tensor:
        """int64 [images]"""
        if work.images is None or work.images % max(self.images, 1) or (work.images and not self.images):
            of = "packed sequences" if work.images is None else f"a batch of {work.images}"
            raise AccelError(
                f"a layer ran on {of}, no multiple of the {self.images} images: its MACs cannot be told apart by "
                "image; count them with per_image=False"
            )
        if isinstance(work.executed, Tensor):
            return work.executed.to("cpu", torch.int64).reshape(self.images, -1).sum(1)
        each = work.executed // self.images if self.images else 0
        return torch.full((self.images,), each, dtype=torch.int64, device="cpu")


def _frozen(model: nn.Module) -> list[Tensor]:
    """The weights that frozen scripted modules keep as constants of their code."""
    found = []
    for code in filter(None, map(_code, model.modules())):
        constants = code.findAllNodes("prim::Constant", recurse=True)
        found += [
            node.t("value") for node in constants if node.outputsSize() and node.output().type().kind() == "TensorType"
        ]
    return found


def _code(module: nn.Module) -> torch._C.Graph | None:
    """The graph that a scripted module runs."""
    return getattr(module, "inlined_graph", None) if isinstance(module, torch.jit.ScriptModule) else None


class _Fixed:
    """The tensors of a run that do not depend on its input, by their storage: the model's own, what is computed from
    them (casts, views, masked or normalised weights), and constants. The outputs of layers are activations, whatever
    they read."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        self._known: dict[int, tuple[object, bool]] = {}  # kept alive, so that no other takes the address; is it own
        for tensor in own:
            self._keep(tensor, own=True)

    def is_own(self, tensor: Tensor) -> bool | None:
        """Whether it is made of the model's own tensors alone; None where that cannot be told (sparse tensors)."""
        storage = _storage(tensor)
        return None if storage is None else self._known.get(storage._cdata, (None, False))[1]

    def has_weights(self, given: Iterable) -> bool:
        """Whether a matrix of the model's own, or an object that packs one, is among the arguments."""
        return any(
            isinstance(each, torch.ScriptObject) or (isinstance(each, Tensor) and each.dim() > 1 and self.is_own(each))
            for each in given
        )

    def follow(self, given: Iterable, out: object, *, is_layer: bool) -> None:
        tensors = [each for each in given if isinstance(each, Tensor)]
        fixed = not is_layer and all(self._is_fixed(tensor) for tensor in tensors)
        own = any(self.is_own(tensor) for tensor in tensors)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and fixed:
                self._keep(tensor, own)
            elif isinstance(tensor, Tensor) and self._is_fixed(tensor):  # written to
                del self._known[_storage(tensor)._cdata]

    def _is_fixed(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._known

    def _keep(self, tensor: Tensor, own: bool) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._known[storage._cdata] = storage, own


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse, nested, opaque
        return None

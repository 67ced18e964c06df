"""A convolution that computes a fraction of its output positions and fills in the others."""

from __future__ import annotations

import dataclasses
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from accel.config import Perforate
from accel.errors import ConfigError
from accel.fills import Fit, laid_over
from accel.kernels.bf16 import round_bf16
from accel.kernels.caches import kept_by_size
from accel.kernels.checks import sizes
from accel.kernels.dispatch import is_direct
from accel.kernels.interpolate import interpolate
from accel.kernels.masked_conv2d import masked_conv2d, masked_conv2d_
from accel.kernels.perforated_conv2d import perforated_conv2d
from accel.kernels.positions import Neighbors, PositionSet, shared, tap_map
from accel.kernels.quantized_interpolate import quantized_interpolate
from accel.kernels.reference.activation import activate
from accel.masks import Pooling, build_mask, layer_generator
from accel.nn import captured
from accel.nn.chosen import choose_positions
from accel.nn.compact import Compact, handed_over
from accel.nn.dense import joins
from accel.nn.folding import Folded, FoldedWeights, normed
from accel.nn.geometry import geometry_of
from accel.nn.quantized import (
    OWN,
    KeptIntegers,
    Meaning,
    Quantization,
    as_numbers,
    convolve_bytes,
    is_floating,
    known,
    meant,
)
from accel.profiling.flops import SavesMacs

# what a conversion adds to a convolution's attributes
CACHES = ("_sets", "_neighbors", "_distances", "_folded", "_integers")
FOUND = ("pooling", "impact", "fit", "quantization", "contiguous")  # by a conversion
STATE = ("config", "layer_name", *FOUND, *CACHES, "_aside", "_nearest")


class PerforatedConv2d(SavesMacs, nn.Conv2d):
    """Perforated convolution (Figurnov et al., NIPS 2016), with the parameters and the names of an `nn.Conv2d`.

    Input [N, C, H, W] or [C, H, W] in any memory format; output of the same rank. Differentiable.

    Attributes:
        config: what to compute and how to fill in the rest.
        layer_name: full module name; with config.seed and the output size it fixes the position set.
        pooling: the pooling layer that reads the output, for a mask that asks; None where there is none.
        impact: float [H, W] on the CPU, the loss change per position at the calibrated size, for impact masks.
        fit: what a calibration found, for a fill that needs data; set it by `set_fit`.
        quantization: what it found for precision "int8".
        contiguous: whether the output is contiguous, for a model that views it, and not channels_last.
    """

    is_one_op = True  # for compilers: see `accel.nn.layer_op`

    def __init__(self, *args, config: Perforate, layer_name: str = "", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._aside = {}
        PerforatedConv2d.adopt(self, config, layer_name)

    @staticmethod
    def adopt(
        conv: nn.Conv2d,
        config: Perforate,
        layer_name: str,
        pooling: Pooling | None = None,
        impact: Tensor | None = None,
        fit: Fit | None = None,
        contiguous: bool = False,
        quantization: Quantization | None = None,
    ) -> PerforatedConv2d:
        """Turn `conv` itself into a perforated convolution, so that hooks and every reference to it stay valid.

        Attributes of its own that bear the same names are kept aside for `release`.
        """
        if not isinstance(conv, PerforatedConv2d):
            conv._aside = {name: conv.__dict__[name] for name in STATE if name in conv.__dict__}
        conv.__class__ = _as_kind(conv, PerforatedConv2d)
        conv.config = config
        conv.layer_name = layer_name
        conv.pooling = pooling
        conv.impact = impact
        conv.contiguous = contiguous
        conv.quantization = quantization
        conv._sets = {}  # (height, width, device) -> PositionSet
        conv.set_fit(fit)
        return conv

    def set_fit(self, fit: Fit | None) -> None:
        """Fill in skipped positions as `fit` says from now on."""
        self.fit = fit
        self._nearest = fit is not None and bool(fit.nearest.all())  # its first neighbours would break ties otherwise
        self._neighbors = {}  # (height, width, device) -> Neighbors
        self._distances = {}  # (height, width) -> Fit
        self._folded = FoldedWeights()
        self._integers = KeptIntegers()

    def release(self) -> nn.Conv2d:
        """Turn this very module back into the `nn.Conv2d` it was adopted from."""
        aside = self._aside
        for name in STATE:
            del self.__dict__[name]
        self.__dict__.update(aside)
        self.__class__ = _as_kind(self, nn.Conv2d)
        return self

    def __getstate__(self) -> dict:
        # copies and pickles build their own caches, and take the values alone of what was worked out under autograd
        worked_out = {name: t.detach() for name, t in vars(self).items() if isinstance(t, Tensor) and not t.is_leaf}
        return {
            **self.__dict__,
            **worked_out,
            "_sets": {},
            "_neighbors": {},
            "_distances": {},
            "_folded": FoldedWeights(),
            "_integers": KeptIntegers(),
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, keep={self.config.keep:g}, mask={self.config.mask}"

    def facts(self) -> dict[str, str | None]:
        note = f"in {self.config.precision}" if self.config.rounds else None
        if self.config.filling.needs_data and self.fit is not None and (lost := int(self.fit.nearest.sum())):
            lossy = f"nearest in {lost} of {self.out_channels} channels, no fit served better"  # see accel.calibrate
            note = "; ".join(filter(None, (note, lossy)))
        how = {"mask": self.config.mask, "interpolate": self.config.interpolate}
        return {**how, "precision": self.config.precision, "note": note}

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of `height` x `width`."""
        return geometry_of(self).output_size(height, width)

    def tap_map(self, height: int, width: int) -> Tensor:
        """The pixels of an input of `height` x `width` that each output position reads; see
        `accel.kernels.positions.tap_map`."""
        now = geometry_of(self)
        return tap_map((height, width), now.kernel, now.stride, now.padding, now.dilation, now.padding_mode)

    def position_set(self, out_h: int, out_w: int, device: torch.device | str = "cpu") -> PositionSet:
        """The position set for an output of `out_h` x `out_w`; built once per size."""
        key = (out_h, out_w, torch.device(device))
        return kept_by_size(self._sets, key, lambda: self._build_set(out_h, out_w).to(device))

    def _build_set(self, height: int, width: int) -> PositionSet:
        impact = self.impact
        if impact is not None and tuple(impact.shape) != (height, width):
            warnings.warn(
                "impact maps are resized by the nearest rule: calibrate at the size that the model runs at to avoid it",
                stacklevel=2,
            )
            impact = F.interpolate(impact[None, None], size=(height, width), mode="nearest")[0, 0]
        generator = layer_generator(self.config.seed, self.layer_name, height, width)
        found = build_mask(
            self.config.mask,
            self.config.keep,
            height,
            width,
            generator=generator,
            pooling=self.pooling,
            impact=impact,
            shift=self.config.shift,
        )
        return shared(found)

    def forward(
        self,
        input: Tensor | Compact,
        norm: nn.Module | None = None,
        activation: str = "none",
        compact: bool = False,
        residual: Tensor | Compact | None = None,
        meaning: Meaning = OWN,
        is_rounded: bool = False,
    ) -> Tensor | Compact:
        """The convolution, and what the inference path fuses into it.

        Args:
            input: [N, C, H, W] or [C, H, W]; the inference path may hand over compact rows, in eight bits as bytes.
            norm: the batch norm behind, folded into a cached copy of the weights; without gradients, in evaluation.
            activation: applied last; see `accel.ops.perforated_conv2d`.
            compact: return rows; the caller reads them through the nearest map.
            residual: what the model adds to the map, before the activation; in eight bits also a map in bytes.
            meaning: of the bytes that are read, added and given.
            is_rounded: whether all that read the output round it to bf16; it may then come so.
        """
        if isinstance(input, Compact):
            if not input.batched:
                return self._forward_unbatched(input, norm, activation, compact, residual)
            x, source, batch = input.rows, input.positions, input.batch
            size = (source.height, source.width)
        elif isinstance(input, fx.Proxy):
            return captured.record(self, input)
        elif input.dim() == 3:
            return self._forward_unbatched(input, norm, activation, compact, residual)
        elif torch.compiler.is_compiling() and self.is_one_op:
            return captured.convolve(self, input)
        else:
            x, source, batch, size = input, None, len(input), sizes(input)[2:]
        positions = self.position_set(*self.output_size(*size), x.device)
        shape = (batch, self.out_channels, positions.height, positions.width)
        if isinstance(residual, Compact):
            residual = self._residual(residual, shape, positions, activation, meaning)
            joined = residual.shape == shape
        else:
            like = self.weight if x.dtype in (torch.uint8, torch.bfloat16) else x  # of what is handed over
            joined = residual is None or joins(residual, like, shape)
        if not self.config.masking.is_static:
            out = self._fill_adaptively(x, positions, norm, activation)
        elif not joined:
            filled = self._fill(x, positions, source, batch, norm, "none", False, meaning=Meaning(meaning.read))
            out = activate(filled + residual, activation)
        else:
            how = (compact, residual, meaning, is_rounded)
            out = self._fill(x, positions, source, batch, norm, activation, *how)
        return out.contiguous() if self.contiguous and isinstance(out, Tensor) else out

    def _residual(
        self, residual: Compact, shape: tuple[int, ...], positions: PositionSet, activation: str, meaning: Meaning
    ) -> Tensor:
        """A map in bytes as it is, where this layer gives bytes, else as numbers."""
        image = residual.as_image()
        gives = meaning.given is not None if self.sums_at(positions) else meaning.gives(activation)
        return image if gives and image.shape == shape else as_numbers(image, meant(meaning.added))

    def forward_densely(self, input: Tensor) -> Tensor:
        """The convolution as torch computes it, at every position and without what a fit corrects."""
        out = nn.Conv2d.forward(self, input)
        return out.contiguous() if self.contiguous else out

    def dense_output(self, image: Tensor) -> Tensor:
        """What torch's convolution gives with the weights that this layer computes with, a fit's correction included;
        in eight bits with the numbers that its bytes stand for.

        `forward` gives the same at the positions that are computed.
        """
        positions = self.position_set(*self.output_size(*image.shape[-2:]), image.device)
        weights = self._weights(None, positions if self.sums_at(positions) else None)
        if self.config.in_bytes:
            image, weights = self._known_quantization().imitate(image, weights)
        elif self.config.in_bf16:
            return self._conv_forward(round_bf16(image), round_bf16(weights.weight), weights.bias)
        return self._conv_forward(image, weights.weight, weights.bias)

    def _forward_unbatched(
        self,
        input: Tensor | Compact,
        norm: nn.Module | None,
        activation: str,
        compact: bool,
        residual: Tensor | None,
    ) -> Tensor | Compact:
        """`forward` of a map without a batch dimension."""
        image = input[None] if isinstance(input, Tensor) else dataclasses.replace(input, batched=True)
        if residual is not None or norm is not None:  # a norm refuses it, or takes the map's rows for its channels
            if compact:
                raise ValueError("expected 4D input (got 3D input): rows are normed of batches only")
            out = normed(norm, PerforatedConv2d.forward(self, image)[0])
            return activate(out if residual is None else out + residual, activation)
        out = PerforatedConv2d.forward(self, image, norm, activation, compact)  # watched already, if at all
        return dataclasses.replace(out, batched=False) if isinstance(out, Compact) else out[0]

    def _fill(
        self,
        x: Tensor,
        positions: PositionSet,
        source: PositionSet | None,
        batch: int,
        norm: nn.Module | None,
        activation: str,
        compact: bool,
        residual: Tensor | None = None,
        meaning: Meaning = OWN,
        is_rounded: bool = False,
    ) -> Tensor | Compact:
        """Convolve at a static set and fill in the rest."""
        summed = self.sums_at(positions)
        weights = self._weights(norm, positions if summed else None)
        if summed:
            rows = self._convolve(x, weights, positions, source, "none", True, meaning=Meaning(meaning.read))
            filled_from = (self.neighbors(positions), weights.sums, weights.constant)
            if meaning.given is None or is_floating():
                return interpolate(rows, positions, *filled_from, activation, residual)
            to = meant(meaning.given)
            added = None if residual is None or residual.is_floating_point() else meant(meaning.added)
            how = (1 / to.scale, to.zero_point, activation, residual, added)
            return handed_over(quantized_interpolate(rows, positions, *filled_from, *how))
        filling = self.config.filling
        if not filling.from_rows:
            rows = self._convolve(x, weights, positions, source, "none", True, meaning=Meaning(meaning.read))
            rows = rows.view(batch, len(positions), self.out_channels)
            dense = laid_over(filling.background(rows, positions), rows, positions)
            return activate(dense if residual is None else dense + residual, activation)
        out = self._convolve(x, weights, positions, source, activation, compact, residual, meaning, is_rounded)
        if compact:
            return Compact(out, positions, batch)
        return handed_over(out) if out.dtype is torch.uint8 else out

    def _fill_adaptively(self, x: Tensor, positions: PositionSet, norm: nn.Module | None, activation: str) -> Tensor:
        """Convolve at the lattice, fill in the rest, and put the exact values at the positions chosen in each image."""
        training = torch.is_grad_enabled()
        fused = "none" if training else activation
        dense = self._fill(x, positions, None, len(x), norm, fused, compact=False)
        chosen = choose_positions(self, x, positions)
        weights = self._weights(norm, positions if self.sums_at(positions) else None)
        now = geometry_of(self)
        geometry = {"stride": now.stride, "padding": now.padding, "dilation": now.dilation}
        geometry |= {"groups": now.groups, "activation": fused, "precision": self._precision}
        if not training:
            return masked_conv2d_(dense, x, weights.weight, weights.bias, chosen, **geometry)
        rows = masked_conv2d(x, weights.weight, weights.bias, chosen, **geometry)
        pixels = dense.permute(0, 2, 3, 1).flatten(0, 2).index_copy(0, chosen.positions.long(), rows)
        return activate(pixels.view(len(x), *dense.shape[2:], self.out_channels).permute(0, 3, 1, 2), activation)

    def sums_at(self, positions: PositionSet) -> bool:
        """Whether skipped positions are weighted sums of computed ones."""
        return self.config.filling.sums and not (self._nearest or positions.is_full)

    def rows_at(self, x: Tensor, positions: PositionSet, weight: Tensor) -> Tensor:
        """[N * P, K], the convolution of x [N, C, H, W] with `weight` and this layer's bias at the positions."""
        return self._convolve(x, Folded(weight, self.bias, None, None), positions, None, "none", compact=True)

    def _convolve(
        self,
        x: Tensor,
        weights: Folded,
        positions: PositionSet,
        source: PositionSet | None,
        activation: str,
        compact: bool,
        residual: Tensor | None = None,
        meaning: Meaning = OWN,
        is_rounded: bool = False,
    ) -> Tensor:
        now = geometry_of(self)
        how = {
            "stride": now.stride, "padding": now.padding, "dilation": now.dilation, "groups": now.groups,
            "padding_mode": now.padding_mode, "residual": residual, "compact": compact, "source": source,
        }  # fmt: skip
        if self.config.in_bytes and not is_floating():
            quantization = self._known_quantization()
            if not torch.is_grad_enabled():
                levels = [None if source is None else meant(source) for source in meaning]
                return convolve_bytes(x, weights, positions, quantization, self._integers, *levels, activation, **how)
            x, weights = quantization.imitate(x, weights)
        weights = weights.multiplied()
        how |= {"activation": activation, "precision": self._precision}
        if is_rounded and self._precision == "bf16":
            how["out_dtype"] = torch.bfloat16
        return perforated_conv2d(x, weights.weight, weights.bias, positions, **how)

    @property
    def _precision(self) -> str:
        """Of the convolutions of numbers."""
        return "bf16" if self.config.in_bf16 and not is_floating() else "fp32"

    def _known_quantization(self) -> Quantization:
        return known(self.quantization, self.layer_name)

    def _weights(self, norm: nn.Module | None, positions: PositionSet | None) -> Folded:
        """What to compute with; `positions` where skipped ones are filled in by weighted sums."""
        if positions is None:
            live = norm is None and (torch.is_grad_enabled() or not is_direct())
            return Folded(self.weight, self.bias, None, None) if live else self._fold(norm)
        fit = self.fit_for(positions)
        if norm is not None or not torch.is_grad_enabled():
            return self._fold(norm, fit)
        weight, bias = self.weight, self.bias  # read once: a parametrization may go on at every reading
        scale, shift, sums, constant = (
            tensor.to(weight) for tensor in (fit.scale, fit.shift, fit.weights, fit.constant)
        )
        bias = shift if bias is None else bias * scale + shift
        return Folded(fit.corrected(weight), bias, sums, constant)

    def _fold(self, norm: nn.Module | None, fit: Fit | None = None) -> Folded:
        return self._folded.get(self, norm, fit, apart=self.config.in_bytes)

    def fit_for(self, positions: PositionSet) -> Fit:
        """What fills in the skipped positions of one of this layer's sets; by distance, it is found for each size."""
        if self.fit is not None:
            return self.fit
        filling, count = self.config.filling, self.config.neighbors
        if filling.needs_data:
            raise ConfigError(
                f"layer {self.layer_name!r} was never fitted: pass calibration= to convert_model, "
                "or call accel.calibrate.fit_interpolation"
            )
        key = (positions.height, positions.width)
        return kept_by_size(self._distances, key, lambda: filling.weigh(positions.to("cpu"), count, self.out_channels))

    def neighbors(self, positions: PositionSet) -> Neighbors:
        """What the skipped positions of one of this layer's position sets are weighted sums of; found once per size."""
        key = (positions.height, positions.width, positions.positions.device)
        device = positions.positions.device
        return kept_by_size(
            self._neighbors, key, lambda: self.fit_for(positions).neighbors(positions.to("cpu")).to(device)
        )


def _as_kind(conv: nn.Conv2d, kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """`kind`, or where the layer is parametrized a subclass of it with what that put into the layer's class."""
    if not is_parametrized(conv):
        return kind
    own = {name: value for name, value in vars(type(conv)).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{kind.__name__}", (kind,), own)


def shallow_copy(layer: nn.Module) -> nn.Module:
    """A module beside `layer` with the same parameters and submodules; `copy.copy` refuses parametrized ones."""
    other = type(layer).__new__(type(layer))
    other.__dict__ = dict(PerforatedConv2d.__getstate__(layer) if isinstance(layer, PerforatedConv2d) else vars(layer))
    return other

"""export_onnx: a model as an ONNX file of standard operators, proved in ONNX Runtime before it is handed out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from accel.convert import counted_layers
from accel.errors import ConfigError, ConversionError
from accel.export.program import standard_program
from accel.files import replacing
from accel.inputs import Batch, Inputs, as_batch
from accel.nn.adaptive import adaptive_stages
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized_linear import QuantizedLinear
from accel.nn.stage_outputs import AdaptiveOutput
from accel.profiling.distances import difference, relative_norms
from accel.running import output_tensors, run_on, undisturbed

if TYPE_CHECKING:
    import onnxruntime

# Relative, in eight bits or bf16: where a number ends half-way between two of these rounding decides, and layers add to
# that.
_ROUNDED_TOLERANCE = 0.05
_NEEDED = "exporting needs the packages onnx, onnxscript and onnxruntime ({}): pip install 'skimconv[onnx]'"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        difference: between ONNX Runtime's outputs and the model's own, ||a - b|| / ||b||, the largest of them; None
            where it was not looked at.
        sparse: perforated layers that compute their positions alone, as they do here.
        dense: layers and stages that compute every position there, whatever their masks say, by name: why.
    """

    path: pathlib.Path
    difference: float | None
    sparse: tuple[str, ...]
    dense: dict[str, str]


def export_onnx(
    model: nn.Module,
    path: str | pathlib.Path,
    example_inputs: Inputs,
    *,
    dynamic_batch: bool = False,
    verify: bool = True,
) -> Exported:
    """Write a model, converted or not, as ONNX: standard operators only, for pictures of the example's size.

    Static perforation keeps its saving: regular masks become convolutions of larger strides, others gather what they
    read. Eight bits become QuantizeLinear and DequantizeLinear. What decides from data where to compute (adaptive
    masks, ACT, SACT and PACT) computes every position and keeps what its mask says.

    Args:
        path: the file; it appears when it is whole and right.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
        dynamic_batch: for any number of pictures, not only as many as in the example.
        verify: run the file in ONNX Runtime and compare its outputs with the model's. False skips that, with a warning.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
        ConversionError: the model cannot be exported, or what was exported computes something else.
        DataError: unusable example inputs.
        OSError: the file cannot be written.
    """
    path, batch = pathlib.Path(path), as_batch(example_inputs)
    runtime = _runtime(verify)
    if dynamic_batch:
        batch = _several(batch)
    program = standard_program(model, batch, dynamic_batch)
    with replacing(path) as partial:
        _write(program, partial)
        difference = _proved(model, partial, batch, runtime) if verify else None
    if not verify:
        warnings.warn("verify=False: the exported file was not compared with the model", stacklevel=2)
    return Exported(path, difference, *_said(model))


def _runtime(needed: bool) -> onnxruntime | None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if needed:
            import onnxruntime

            return onnxruntime
    except ImportError as error:
        raise ConfigError(_NEEDED.format(error)) from error
    return None


def _several(batch: Batch) -> Batch:
    """The batch with at least two pictures: torch takes a length of one for a constant."""
    return batch if len(batch) > 1 else batch.map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x)


def _write(program: torch.export.ExportedProgram, path: pathlib.Path) -> None:
    try:
        with _silent():
            torch.onnx.export(program, dynamo=True, verbose=False).save(path, external_data=False)  # one file or none
    except Exception as error:  # of many kinds: an operator that ONNX lacks, a package of another version
        said = " ".join(str(error).split())[:300]
        raise ConversionError(f"torch.onnx cannot export this model ({type(error).__name__}: {said})") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Within the block, torch's exporter does not tell its progress."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _proved(model: nn.Module, path: pathlib.Path, batch: Batch, runtime: onnxruntime) -> float:
    """The difference of the file's outputs from the model's; ConversionError where it is more than rounding."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    inputs = batch.tensors
    if len(names) != len(inputs):
        raise ConversionError(f"the exported file reads {len(names)} inputs, the model {len(inputs)}")
    given = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in zip(names, inputs)}
    found = [torch.from_numpy(each) for each in session.run(None, given)]
    with undisturbed(model):
        expected = run_on(model, batch.inputs)
    if isinstance(expected, AdaptiveOutput):  # whoever exports does not know records
        expected = expected.logits
    wanted = [tensor.cpu() for tensor in output_tensors(expected)]
    largest = max(relative_norms(found, wanted), default=0.0)
    if any(isinstance(m, QuantizedLinear) or _rounds(m) for m in model.modules()):
        said = None if largest <= _ROUNDED_TOLERANCE else f"differs by {largest:.2g}"
    else:
        said = difference(wanted, found)
    if said is not None:
        raise ConversionError(f"the exported file {said} from the model: it was not kept")
    return largest


def _rounds(layer: nn.Module) -> bool:
    return isinstance(layer, PerforatedConv2d) and layer.config.rounds


def _said(model: nn.Module) -> tuple[tuple[str, ...], dict[str, str]]:
    """(layers that keep their saving, those that do not and why)."""
    layers = {n: m for n, m in counted_layers(model).items() if isinstance(m, PerforatedConv2d)}
    dense = {name: "its mask is chosen from the input" for name, m in layers.items() if not m.config.masking.is_static}
    dense |= {stage.name: "its units run everywhere, under their masks" for stage in adaptive_stages(model)}
    sparse = tuple(n for n, m in layers.items() if n not in dense and m.config.keep < 1)
    return sparse, dense

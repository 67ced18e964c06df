"""export_onnx: a model as an ONNX file of standard operators, proved in ONNX Runtime before it is handed out."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, ConversionError
from accel.export.program import standard_program
from accel.export.proof import Exported, proved, said_of, several
from accel.files import replacing
from accel.inputs import Batch, Inputs, as_batch

if TYPE_CHECKING:
    import onnxruntime

_NEEDED = "exporting needs the packages onnx, onnxscript and onnxruntime ({}): pip install 'skimconv[onnx]'"


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
        batch = several(batch)
    program = standard_program(model, batch, dynamic_batch)
    with replacing(path) as partial:
        _write(program, partial)
        difference = proved(model, batch, _run(partial, batch, runtime)) if verify else None
    if not verify:
        warnings.warn("verify=False: the exported file was not compared with the model", stacklevel=2)
    return Exported(path, difference, *said_of(model))


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


def _run(path: pathlib.Path, batch: Batch, runtime: onnxruntime) -> list[Tensor]:
    """The outputs of the file.

    Raises:
        ConversionError: it reads other inputs than the model.
    """
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    inputs = batch.tensors
    if len(names) != len(inputs):
        raise ConversionError(f"the exported file reads {len(names)} inputs, the model {len(inputs)}")
    given = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in zip(names, inputs)}
    return [torch.from_numpy(each) for each in session.run(None, given)]

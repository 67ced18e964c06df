"""export_package: a model compiled ahead of time by torch (AOTInductor), proved before it is handed out."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import torch
from torch import Tensor

from accel.errors import ConversionError
from accel.export.program import standard_program
from accel.export.proof import Exported, proved, said_of, several
from accel.files import replacing
from accel.inputs import Batch, Inputs, as_batch
from accel.running import output_tensors


def export_package(
    model: torch.nn.Module, path: str | pathlib.Path, example_inputs: Inputs, *, dynamic_batch: bool = False
) -> Exported:
    """Write a model, converted or not, as a package that `torch._inductor.aoti_load_package` loads without this
    package and without Python's share of a call: machine code for CPUs like this one, and the weights.

    It computes in torch's own operators what an ONNX file of it would: see `accel.export_onnx`.

    Args:
        path: the file, such as model.pt2; it appears when it is whole and right.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
        dynamic_batch: for any number of pictures, not only as many as in the example.

    Raises:
        ConversionError: the model cannot be exported or compiled, or what was compiled computes something else.
        DataError: unusable example inputs.
        OSError: the file cannot be written.
    """
    path, batch = pathlib.Path(path), as_batch(example_inputs)
    if dynamic_batch:
        batch = several(batch)
    program = standard_program(model, batch, dynamic_batch)
    with replacing(path) as partial, tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder, "model.pt2")  # torch insists on the ending
        _compile(program, made)
        found = proved(model, batch, _run(made, batch))
        shutil.copyfile(made, partial)
    return Exported(path, found, *said_of(model))


def _compile(program: torch.export.ExportedProgram, path: pathlib.Path) -> None:
    try:
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # of many kinds: the lowering's, and those of the compiler for C++
        said = " ".join(str(error).split())[:300]
        raise ConversionError(
            f"torch cannot compile this model ahead of time ({type(error).__name__}: {said})"
        ) from error


def _run(path: pathlib.Path, batch: Batch) -> list[Tensor]:
    inputs = batch.map(lambda value: value.cpu() if isinstance(value, Tensor) else value)
    with torch.no_grad():
        return output_tensors(inputs.run(torch._inductor.aoti_load_package(str(path))))

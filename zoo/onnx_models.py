"""file.onnx: a network whose Python code nobody has, read by onnx2torch and compared with ONNX Runtime. Reading such a
file runs none of its sender's code."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from accel.errors import ConfigError, ConversionError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from torch import Tensor, nn

SUFFIX = ".onnx"
_ROUNDING = 5e-7
_VERSION = 17  # of the operators, the last of which onnx2torch 1.5.15 knows nearly all
_NEEDED = "an ONNX file is read with the packages onnx2torch and onnxruntime ({}): pip install 'skimconv[onnx]'"


def is_onnx(spec: str) -> bool:
    return spec.endswith(SUFFIX)


def build(spec: str) -> nn.Module:
    """The network of the file.

    Raises:
        ConfigError: a package is missing.
        WeightsError: no such file, or no ONNX file.
        ConversionError: an operator that cannot be read.
    """
    if not pathlib.Path(spec).is_file():
        raise WeightsError(f"no file {spec}")
    try:
        import onnx
        import onnx2torch

        from accel.zoo.onnx_folding import fold
    except ImportError as error:
        raise ConfigError(_NEEDED.format(error)) from error
    try:
        onnx.checker.check_model(spec)
        file = onnx.load(spec)
    except Exception as error:  # of several packages: protobuf's, onnx's
        raise WeightsError(f"{spec} is no ONNX file that onnx {onnx.__version__} reads: {_line(error)}") from error
    try:
        net = onnx2torch.convert(_as_read(file))
    except Exception as error:  # its own, of several kinds: an operator that it lacks, a setting of one
        raise ConversionError(f"onnx2torch cannot read {spec} ({type(error).__name__}: {_line(error)})") from error
    return fold(net)


def _as_read(file: onnx.ModelProto) -> onnx.ModelProto:
    """The file as onnx2torch knows it: of a version of before, weights as initializers and not as nodes that give
    them."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    version = next((each.version for each in file.opset_import if each.domain in ("", "ai.onnx")), 0)
    if version > _VERSION:
        file = onnx.version_converter.convert_version(file, _VERSION)
    model = onnx_ir.from_proto(file)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return onnx_ir.to_proto(model)


def declared_size(spec: str) -> tuple[int, int] | None:
    """The height and width of pictures that the file says; None where it leaves them free. WeightsError: no input."""
    import onnx

    graph = onnx.load(spec, load_external_data=False).graph
    weights = {each.name for each in graph.initializer}  # which old files list among the inputs
    pictures = next((each for each in graph.input if each.name not in weights), None)
    if pictures is None:
        raise WeightsError(f"{spec} reads no input: it is no network of pictures")
    sides = [side.dim_value for side in pictures.type.tensor_type.shape.dim[2:4]]
    return (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None


def prove(spec: str, x: Tensor, outputs: object) -> None:
    """Compare a network's outputs with what ONNX Runtime makes of the file.

    Raises:
        ConversionError: they differ by more than rounding, or ONNX Runtime cannot run the file.
    """
    import onnxruntime
    import torch

    from accel.profiling.distances import difference
    from accel.running import output_tensors

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # what it would log, its error says
    try:
        session = onnxruntime.InferenceSession(spec, quiet, providers=["CPUExecutionProvider"])
        expected = session.run(None, {session.get_inputs()[0].name: x.cpu().numpy()})
    except Exception as error:  # its own, of many kinds
        raise ConversionError(f"ONNX Runtime cannot run {spec} ({type(error).__name__}: {_line(error)})") from error
    theirs, ours = list(map(torch.from_numpy, expected)), [each.cpu() for each in output_tensors(outputs)]
    said = difference(theirs, ours)
    if said is not None and not _is_rounding(theirs, ours):
        raise ConversionError(f"{spec}, read by onnx2torch, {said} from what ONNX Runtime makes of it")


def _is_rounding(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> bool:
    """Whether outputs of one shape, finite numbers, are apart by no more than ONNX Runtime's sigmoid errs by: 1e-7,
    whatever its value. Scores that are all as small, of a detector where there is nothing, differ by a tenth."""
    if [each.shape for each in theirs] != [each.shape for each in ours]:
        return False
    return all(bool(((left - right).abs() <= _ROUNDING).all()) for left, right in zip(theirs, ours))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

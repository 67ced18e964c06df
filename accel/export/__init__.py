"""Converted models in other runtimes: as ONNX files of standard operators, or compiled ahead of time by torch; compared
with the model itself.

| file         | what it does                                                                      |
|--------------|-----------------------------------------------------------------------------------|
| `phases.py`  | regular position sets as parts that ordinary convolutions compute                 |
| `window.py`  | what such a part reads of the input                                               |
| `standard.py`| a perforated layer in torch's operators                                           |
| `program.py` | a whole model in them, by torch.export                                            |
| `proof.py`   | what was exported, compared with the model                                        |
| `onnx.py`    | an ONNX file, run in ONNX Runtime                                                 |
| `package.py` | machine code, by AOTInductor                                                      |
"""

from accel.export.onnx import export_onnx
from accel.export.package import export_package
from accel.export.proof import Exported

__all__ = ["Exported", "export_onnx", "export_package"]

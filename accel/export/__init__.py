"""Converted models in other runtimes: as ONNX files of standard operators, compared with the model itself.

| file         | what it does                                                                      |
|--------------|-----------------------------------------------------------------------------------|
| `phases.py`  | regular position sets as parts that ordinary convolutions compute                 |
| `window.py`  | what such a part reads of the input                                               |
| `standard.py`| a perforated layer in torch's operators                                           |
| `program.py` | a whole model in them, by torch.export                                            |
| `onnx.py`    | the file, and its proof in ONNX Runtime                                           |
"""

from accel.export.onnx import Exported, export_onnx

__all__ = ["Exported", "export_onnx"]

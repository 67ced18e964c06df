"""PP-OCRv4's detector of text (PaddleOCR, Apache-2.0): an ONNX file in another package, its Python code in none.

A picture goes in, a map of scores comes out, and the boxes of a map are what it is judged by. The file is
`models/ch_PP-OCRv4_det_infer.onnx` of rapidocr-onnxruntime (Apache-2.0); none of that package's code is run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib

import numpy as np
import torch
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.zoo import onnx_models
from accel.zoo.text_pages import draw_pages

_PACKAGE, _FILE = "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx"
_NEEDED = (
    "zoo:ppocr_det is a file of the package rapidocr-onnxruntime: pip install rapidocr-onnxruntime, or give the file "
    f"{pathlib.Path(_FILE).name} as MODEL, with --mean 0.5 --std 0.5"
)
DENSE = ("p2o/Conv/0",)  # what default rules leave alone: the first, as elsewhere
GRAIN = 32  # sides of its pictures are multiples of it: five halvings, and a pyramid that adds the levels
# Its makers' settings, of rapidocr-onnxruntime 1.4's config.yaml
ABOVE, SURE, GROWN, SMALLEST = 0.3, 0.5, 1.6, 3


def build() -> nn.Module:
    """float32 [N, 3, H, W] by `preprocess`, sides multiples of `GRAIN`, to scores [N, 1, H, W] of text.

    Raises:
        ConfigError: the package that brings the file is missing.
        ConversionError: what was read gives something else than the file does in ONNX Runtime.
    """
    path = str(file())
    net = onnx_models.build(path).eval()
    x = preprocess(draw_pages(1, (96, 160), torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        onnx_models.prove(path, x, net(x))
    return net


def file() -> pathlib.Path:
    """Where the network lies.

    Raises:
        ConfigError: the package that brings it is missing.
    """
    found = importlib.util.find_spec(_PACKAGE)  # of a name without a dot: nothing is imported
    places = [] if found is None else found.submodule_search_locations or []
    path = next((file for place in places if (file := pathlib.Path(place, _FILE)).is_file()), None)
    if path is None:
        raise ConfigError(_NEEDED)
    return path


def preprocess(pictures: Tensor) -> Tensor:
    """uint8 RGB [N, 3, H, W] to the float32 input: -1 to 1, blue first."""
    return (pictures.flip(1).float() / 255 - 0.5) / 0.5


def find_boxes(scores: Tensor) -> Tensor:
    """The upright boxes of text in a map of scores [H, W]: float64 [K, 4], left, top, right, bottom in pixels.

    A box is what surrounds a connected region above `ABOVE` whose mean score is at least `SURE`, on all sides larger by
    `GROWN` times its area over its perimeter: the network is trained to draw text shrunk by as much (differentiable
    binarization, Liao et al. 2020, arXiv 1911.08947, section 3.5).
    """
    from scipy import ndimage

    values = scores.detach().double().cpu().numpy()
    regions, count = ndimage.label(values > ABOVE, structure=np.ones((3, 3), dtype=int))
    means = ndimage.mean(values, regions, np.arange(1, count + 1))
    found = []
    for (rows, columns), mean in zip(ndimage.find_objects(regions), means):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if mean >= SURE and min(height, width) >= SMALLEST:
            by = GROWN * height * width / (2 * (height + width))
            found.append([columns.start - by, rows.start - by, columns.stop + by, rows.stop + by])
    return torch.tensor(found, dtype=torch.float64, device="cpu").view(-1, 4)


@dataclasses.dataclass
class BoxAgreement:
    """Running totals over the pictures given to `add`: how many boxes two networks find, and how many of them both.

    Attributes:
        overlap: intersection over union from which two boxes are the same.
    """

    overlap: float = 0.5
    both: int = 0
    all: int = 0

    def add(self, dense: Tensor, ours: Tensor) -> None:
        """Two maps of scores [N, 1, H, W]; boxes are paired so that most are."""
        from scipy.optimize import linear_sum_assignment
        from torchvision.ops import box_iou

        for pair in zip(dense[:, 0], ours[:, 0]):
            left, right = map(find_boxes, pair)
            same = (box_iou(left, right) >= self.overlap).numpy()
            self.both += int(same[linear_sum_assignment(same, maximize=True)].sum())
            self.all += len(left) + len(right)

    def summary(self) -> dict[str, float]:
        """The F1 of our boxes, those of the dense network taken for right; 1 where neither finds any."""
        return {"box_f1": 2 * self.both / self.all if self.all else 1.0}

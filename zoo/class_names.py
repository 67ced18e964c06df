"""Which output of a classifier a class folder means, where the classifier's classes have names of their own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import torch

from accel.errors import DataError
from accel.zoo.datasets import LabelledPictures

_SYNSET = re.compile(r"n\d{8}")  # how ImageNet's folders are called; its classes are in their order


def matched(name: str | None, pictures: LabelledPictures) -> LabelledPictures:
    """Pictures of class folders, with the labels that torchvision's networks of ImageNet have for them.

    Folders may be called as torchvision calls the classes ("tench", in any case, with _ or - for spaces), by their
    numbers ("0" to "999"), or, all thousand of them, by ImageNet's own (n01440764 to n15075141). Pictures for any other
    model stay as they are, their classes in alphabetical order.

    Raises:
        DataError: a folder that means none of the classes, or more than one.
    """
    if name is None or not name.startswith("torchvision:"):
        return pictures
    categories = _categories(name)
    if len(pictures.classes) == len(categories) and all(map(_SYNSET.fullmatch, pictures.classes)):
        return dataclasses.replace(pictures, classes=categories)
    places = torch.tensor([_place(each, categories) for each in pictures.classes])
    return dataclasses.replace(pictures, labels=places[pictures.labels], classes=categories)


def _categories(name: str) -> tuple[str, ...]:
    import torchvision.models

    weights = torchvision.models.get_model_weights(name.partition(":")[2])
    return tuple(weights.DEFAULT.meta["categories"])


def _place(folder: str, categories: Sequence[str]) -> int:
    if folder.isdigit() and int(folder) < len(categories):
        return int(folder)
    found = [place for place, each in enumerate(categories) if _plain(each) == _plain(folder)]
    if len(found) == 1:
        return found[0]
    how = f"by one of the numbers {' and '.join(map(str, found))}" if found else "as torchvision does, or by its number"
    raise DataError(f"the class folder {folder!r} means {len(found)} of the {len(categories)} classes: call it {how}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()

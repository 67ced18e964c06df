"""Class folders of ImageNet's networks, however they are called."""

import pytest
import torch
import torchvision

from accel.errors import DataError
from accel.zoo import class_names
from accel.zoo.class_names import matched
from accel.zoo.datasets import LabelledPictures

NAME = "torchvision:resnet18"
CATEGORIES = tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


def pictures(*classes, labels=(0, 1)):
    return LabelledPictures(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), torch.tensor(labels), classes)


def test_by_name_by_number_and_by_synset():
    assert CATEGORIES[0] == "tench" and CATEGORIES[1] == "goldfish" and CATEGORIES[3] == "tiger shark"
    assert matched(NAME, pictures("Goldfish", "tench")).labels.tolist() == [1, 0]
    assert matched(NAME, pictures("007", "Tiger_Shark")).labels.tolist() == [7, 3]
    thousand = tuple(f"n{k:08d}" for k in range(len(CATEGORIES)))
    found = matched(NAME, pictures(*thousand, labels=(0, 999)))
    assert found.labels.tolist() == [0, 999] and found.classes == CATEGORIES


def test_other_models_keep_their_order():
    given = pictures("tench", "goldfish")
    assert matched(None, given) is given and matched("zoo:resnet20_cifar", given) is given


def test_what_means_no_class_or_two_is_refused(monkeypatch):
    with pytest.raises(DataError, match="'unicorn' means 0 of the 1000 classes"):
        matched(NAME, pictures("tench", "unicorn"))
    with pytest.raises(DataError, match="'n01440764' means 0 of the 1000 classes"):  # of two folders, which are they?
        matched(NAME, pictures("n01440764", "tench"))
    monkeypatch.setattr(class_names, "_categories", lambda _: ("crane", "Crane"))
    with pytest.raises(DataError, match="'crane' means 2 of the 2 classes: call it by one of the numbers 0 and 1"):
        matched(NAME, pictures("crane", "1"))

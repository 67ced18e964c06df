"""The detector of text that comes as an ONNX file: its boxes, and the pages it is judged on."""

import importlib.util

import pytest
import torch

from accel.errors import ConfigError, WeightsError
from accel.zoo import onnx_models, text_detector
from accel.zoo.registry import get_model, has_weights, preprocess
from accel.zoo.text_detector import BoxAgreement, find_boxes
from accel.zoo.text_pages import draw_pages

NAME = "zoo:ppocr_det"


def pages(count, size=(160, 224), seed=0):
    return draw_pages(count, size, torch.Generator().manual_seed(seed))


def map_of(*regions, size=(60, 80)):
    scores = torch.zeros(size)
    for left, top, right, bottom, score in regions:
        scores[top:bottom, left:right] = score
    return scores


def test_boxes_are_grown_by_what_the_network_is_trained_to_shrink():
    (box,) = find_boxes(map_of((20, 30, 60, 40, 0.9)))
    by = 1.6 * 40 * 10 / (2 * (40 + 10))
    assert box.tolist() == [20 - by, 30 - by, 60 + by, 40 + by]


def test_what_is_no_box():
    unsure, thin, faint = (5, 5, 30, 15, 0.45), (5, 30, 60, 32, 0.9), (40, 5, 70, 20, 0.25)
    assert find_boxes(map_of(unsure, thin, faint)).shape == (0, 4)
    touching = map_of((10, 10, 20, 20, 0.9), (20, 20, 30, 30, 0.9))  # at a corner: one region
    assert len(find_boxes(touching)) == 1


def test_agreement_counts_pairs():
    found, whole = BoxAgreement(), map_of((20, 30, 60, 40, 0.9), (5, 5, 30, 15, 0.9))[None, None]
    shifted = map_of((21, 30, 61, 40, 0.9))[None, None]
    found.add(whole, whole)
    assert found.summary() == {"box_f1": 1.0}
    found.add(whole, shifted)  # one of two boxes, a pixel beside it
    assert (found.both, found.all) == (3, 7) and found.summary()["box_f1"] == pytest.approx(6 / 7)
    elsewhere = BoxAgreement()
    elsewhere.add(shifted, map_of((5, 5, 30, 15, 0.9))[None, None])
    assert elsewhere.summary() == {"box_f1": 0.0} and BoxAgreement().summary() == {"box_f1": 1.0}


def test_pairs_are_chosen_so_that_most_are():
    """Of one box that meets two, and another that meets only the first of them."""
    left = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 6]])
    right = torch.tensor([[0.0, 0, 10, 8], [0.0, 4, 10, 14]])
    boxes = iter((left.double(), right.double()))
    found = BoxAgreement(overlap=0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_detector, "find_boxes", lambda _: next(boxes))
        found.add(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    assert (found.both, found.all) == (2, 4)


def test_blue_comes_first():
    picture = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert preprocess(NAME, picture).flatten().tolist() == [-1, -1, 1]


def test_the_network_is_the_file_s_and_finds_lines():
    net, drawn = get_model(NAME), pages(2)
    x = preprocess(NAME, drawn)
    with torch.inference_mode():
        scores = net(x)
    onnx_models.prove(str(text_detector.file()), x, scores)
    assert has_weights(NAME) and scores.shape == (2, 1, 160, 224)
    assert all(len(find_boxes(each[0])) >= 2 for each in scores)
    plain = torch.full((1, 3, 160, 224), 200, dtype=torch.uint8)
    with torch.inference_mode():
        assert len(find_boxes(net(preprocess(NAME, plain))[0, 0])) == 0


def test_it_takes_no_other_weights(monkeypatch):
    with pytest.raises(WeightsError, match="brings its own weights"):
        get_model(NAME, "other.safetensors")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install rapidocr-onnxruntime, or give the file ch_PP-OCRv4_det"):
        get_model(NAME)


def test_pages_are_drawn_alike_under_a_seed():
    drawn = pages(6, (240, 320))
    assert drawn.shape == (6, 3, 240, 320) and drawn.dtype == torch.uint8
    assert torch.equal(drawn, pages(6, (240, 320))) and not torch.equal(drawn, pages(6, (240, 320), seed=1))
    light = drawn.float().mean((1, 2, 3)) > 127
    assert 0 < light.sum() < 6
    lines = (drawn.float() - drawn.float().flatten(2).median(2).values[..., None, None]).abs() > 90
    assert 0.01 < float(lines.any(1).float().mean()) < 0.3
    assert not lines[..., -2:].any()  # no line leaves its picture

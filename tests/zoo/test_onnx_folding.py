"""Networks read from ONNX files are written shorter, and stay what ONNX Runtime makes of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from accel.zoo import onnx_models

CHANNELS, SIZE = 6, 11


class File:
    """An ONNX file from `x` on, node by node."""

    def __init__(self, seed=0):
        self.nodes, self.weights, self.last = [], [], "x"
        self.rng = np.random.default_rng(seed)

    def constant(self, values):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
        return name

    def drawn(self, *shape):
        return self.constant(self.rng.normal(size=shape))

    def node(self, kind, *inputs, **attributes):
        self.last = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [self.last], name=f"{kind}/{self.last}", **attributes))
        return self.last

    def conv(self, x, pad=1, groups=1, bias=True, kind="Conv"):
        inputs = [x, self.drawn(CHANNELS, CHANNELS // groups, 3, 3), *([self.drawn(CHANNELS)] if bias else [])]
        return self.node(kind, *inputs, group=groups, pads=[pad] * 4, kernel_shape=[3, 3])

    def norm(self, x):
        scale, bias, mean = (self.drawn(CHANNELS) for _ in range(3))
        return self.node("BatchNormalization", x, scale, bias, mean, self.constant(self.rng.uniform(0.5, 2, CHANNELS)))

    def hardswish(self, x, first="mul"):
        clip = self.node("Clip", self.node("Add", x, self.constant(3)), self.constant(0), self.constant(6))
        if first == "mul":
            return self.node("Div", self.node("Mul", x, clip), self.constant(6))
        return self.node("Mul", self.node("Div", clip, self.constant([6])), x)

    def read(self, folder):
        named = [(name, ["n", "c", "h", "w"]) for name in ("x", self.last)]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in named)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.weights)
        path = folder / "net.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
        net = onnx_models.build(str(path)).eval()
        given = torch.randn(1, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            onnx_models.prove(str(path), given, net(given))
        return net


def kinds(net):
    nodes = [node for node in net.graph.nodes if node.op == "call_module"]
    return [type(net.get_submodule(node.target)).__name__ for node in nodes]


@pytest.mark.parametrize("shape", [(), (1,), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_follows_a_convolution_goes_into_its_weights(tmp_path, kind, groups, shape):
    file = File()
    y = file.conv("x", groups=groups, bias=groups == 1, kind=kind)
    y = file.node("Mul", file.drawn(*shape), y)
    y = file.node("Sub", file.node("Add", y, file.drawn(*shape)), file.drawn(*shape))
    y = file.node("Sub", file.drawn(*shape), file.node("Div", y, file.drawn(*shape)))
    file.norm(y)
    net = file.read(tmp_path)
    assert kinds(net) == [{"Conv": "Conv2d", "ConvTranspose": "ConvTranspose2d"}[kind]]
    assert [node.target for node in net.graph.nodes if node.op == "call_module"] == [f"{kind}/y0"]  # as it was called
    assert not list(net.buffers())


@pytest.mark.parametrize("shape", [(1,), (1, CHANNELS, 1, 1)], ids=str)
@pytest.mark.parametrize("groups", [1, 3, CHANNELS])
def test_what_comes_before_a_convolution_without_a_border(tmp_path, groups, shape):
    file = File()
    y = file.node("Add", file.node("Mul", "x", file.drawn(*shape)), file.drawn(*shape))
    file.conv(y, pad=0, groups=groups, bias=groups != 3)
    assert kinds(file.read(tmp_path)) == ["Conv2d"]


@pytest.mark.parametrize("groups", [1, 3, CHANNELS])
def test_before_a_border_what_is_added_stays(tmp_path, groups):
    """Zeros that surround a map are not moved with it."""
    file = File()
    shape = (1, CHANNELS, 1, 1)
    y = file.node("Add", file.node("Mul", "x", file.drawn(*shape)), file.drawn(1))
    y = file.node("Div", file.node("Mul", file.drawn(1), y), file.drawn(*shape))
    file.conv(y, groups=groups)
    assert kinds(file.read(tmp_path)) == ["OnnxBinaryMathOperation", "Conv2d"]
    scaled = File()
    scaled.conv(scaled.node("Mul", "x", scaled.drawn(*shape)), groups=groups)
    assert kinds(scaled.read(tmp_path)) == ["Conv2d"]


@pytest.mark.parametrize("first", ["mul", "div"])
def test_a_hardswish_that_was_spelled_out(tmp_path, first):
    file = File()
    y = file.hardswish(file.conv("x"), first)
    file.conv(file.node("Add", file.node("Mul", y, file.drawn(1)), file.drawn(1)), pad=0)
    assert kinds(file.read(tmp_path)) == ["Conv2d", "Hardswish", "Conv2d"]


def test_what_others_read_too_stays(tmp_path):
    file = File()
    y = file.conv("x")
    scaled = file.node("Mul", y, file.drawn(1))
    file.node("Add", file.conv(scaled), file.node("Add", scaled, y))
    net = file.read(tmp_path)
    assert kinds(net).count("OnnxBinaryMathOperation") == 3 and kinds(net).count("Conv2d") == 2


@pytest.mark.parametrize(("moved", "least", "most", "by"), [(3.1, 0, 6, 6), (3, 0, 5, 6), (3, 1, 6, 6), (3, 0, 6, 7)])
def test_what_only_looks_like_a_hardswish(tmp_path, moved, least, most, by):
    file = File()
    x = file.conv("x")
    clip = file.node("Clip", file.node("Add", x, file.constant(moved)), file.constant(least), file.constant(most))
    file.node("Div", file.node("Mul", x, clip), file.constant(by))
    assert not any(isinstance(each, nn.Hardswish) for each in file.read(tmp_path).modules())


@pytest.mark.parametrize("shape", [(SIZE,), (SIZE, SIZE), (2, 1, 1, 1), (1, 1, 1, 1, 1)], ids=str)
def test_constants_that_are_not_of_channels_stay(tmp_path, shape):
    file = File()
    file.node("Mul", file.conv("x"), file.drawn(*shape))
    assert kinds(file.read(tmp_path)) == ["Conv2d", "OnnxBinaryMathOperation"]

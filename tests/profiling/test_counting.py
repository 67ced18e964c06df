"""What multiplies is counted whichever way it is called, and what cannot be counted is named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

import accel
from accel.kernels.counting import FVCORE_HANDLES, LEDGER, Work, register_macs
from accel.profiling.flops import count_macs, layer_macs, static_macs
from accel.zoo.registry import get_model

N, T, E = 2, 7, 16  # images, tokens, width
TOKENS, PICTURE = (N, T, E), (N, 3, 8, 8)


class Calls(nn.Module):
    """Calls a function with a weight of the given shape."""

    def __init__(self, function, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


NET = N * (36 * 108 + 144 * 5)
PROJECTED = N * T * E  # times the width of what it is projected to
ATTENTION = PROJECTED * 4 * E


def encoder(**options):
    return nn.TransformerEncoderLayer(E, 2, 32, batch_first=True, **options).eval()


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net(), torch.zeros(PICTURE))


def scripted(freeze=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(net())
        return torch.jit.freeze(made) if freeze else made


CASES = {
    "encoder layer": (encoder, TOKENS, ATTENTION + 2 * PROJECTED * 32),
    "encoder layer, norm first, gelu": (
        lambda: encoder(norm_first=True, activation="gelu"),
        TOKENS,
        ATTENTION + 2 * PROJECTED * 32,
    ),
    "encoder": (lambda: nn.TransformerEncoder(encoder(), 3), TOKENS, 3 * (ATTENTION + 2 * PROJECTED * 32)),
    "a traced module": (traced, PICTURE, NET),
    "a scripted module": (scripted, PICTURE, NET),
    "a frozen one": (lambda: scripted(freeze=True), PICTURE, NET),
    "a scripted module in another": (lambda: nn.Sequential(nn.Identity(), scripted()), PICTURE, NET),
    "a compiled module": (lambda: torch.compile(net()), PICTURE, NET),
    "an exported module": (lambda: torch.export.export(net(), (torch.zeros(PICTURE),)).module(), PICTURE, NET),
    "deformable": (
        lambda: Calls(lambda x, w: torchvision.ops.deform_conv2d(x, x.new_zeros(N, 18, 6, 6), w), 4, 3, 3, 3),
        PICTURE,
        N * 36 * 108,
    ),
    "F.linear": (lambda: Calls(F.linear, 5, E), TOKENS, PROJECTED * 5),
    "matmul": (lambda: Calls(torch.matmul, E, 5), TOKENS, PROJECTED * 5),
    "weight first": (lambda: Calls(lambda x, w: w @ x.mT, 5, E), TOKENS, PROJECTED * 5),
    "addmm": (lambda: Calls(lambda x, w: torch.addmm(x[0, :, :5], x[1], w), E, 5), TOKENS, PROJECTED * 5 // N),
    "bmm": (lambda: Calls(torch.bmm, N, E, 5), TOKENS, PROJECTED * 5),
    "einsum": (lambda: Calls(lambda x, w: torch.einsum("bnc,dc->bnd", x, w), 5, E), TOKENS, PROJECTED * 5),
    "tensordot": (lambda: Calls(lambda x, w: torch.tensordot(x, w, 1), E, 5), TOKENS, PROJECTED * 5),
    "a vector": (lambda: Calls(torch.matmul, E), TOKENS, PROJECTED),
    "a masked weight": (
        lambda: Calls(lambda x, w: x @ (w.double() * torch.eye(E, 5)).float(), E, 5),
        TOKENS,
        PROJECTED * 5,
    ),
    "unfold": (
        lambda: Calls(lambda x, w: w.flatten(1) @ F.unfold(x, 3, padding=1), 4, 3, 3, 3),
        PICTURE,
        N * 64 * 108,
    ),
    "F.conv1d": (lambda: Calls(lambda x, w: F.conv1d(x.mT, w), 5, E, 3), TOKENS, N * (T - 2) * 5 * E * 3),
    "F.conv2d": (lambda: Calls(F.conv2d, 4, 3, 3, 3), PICTURE, N * 36 * 108),
    "F.conv_transpose2d": (lambda: Calls(F.conv_transpose2d, 3, 4, 3, 3), PICTURE, N * 64 * 108),
    "Conv3d": (lambda: nn.Conv3d(1, 2, (1, 3, 3)), (N, 1, 3, 8, 8), N * 3 * 36 * 2 * 9),
    "ConvTranspose1d, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (N, 4, 5), N * 20 * 3 * 3),
    "without a batch": (lambda: nn.Conv2d(3, 4, 3), PICTURE[1:], 36 * 108),
    "transposed, without a batch": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), 100 * 3 * 9),
    "an empty batch": (net, (0, 3, 8, 8), 0),
    "RNN": (lambda: nn.RNN(E, 5, batch_first=True), TOKENS, N * T * (E * 5 + 25)),
    "LSTM": (lambda: nn.LSTM(E, 5, 2, bidirectional=True), TOKENS, N * T * 8 * (E * 5 + 25 + 50 + 25)),
    "LSTM, projected": (lambda: nn.LSTM(E, 5, proj_size=3), TOKENS, N * T * (20 * E + 20 * 3 + 3 * 5)),
    "GRU": (lambda: nn.GRU(E, 5), TOKENS, N * T * 3 * (E * 5 + 25)),
    "LSTMCell": (lambda: nn.LSTMCell(E, 5), (N, E), N * 4 * (E * 5 + 25)),
    "GRUCell": (lambda: nn.GRUCell(E, 5), (N, E), N * 3 * (E * 5 + 25)),
    "parametrised": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
        ),
        PICTURE,
        N * 36 * (108 + 16),
    ),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}),
        PICTURE,
        NET,
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize", "ignore:.*deprecated")
@pytest.mark.parametrize("case", CASES)
def test_counted_whichever_way_it_is_called(case):
    build, shape, expected = CASES[case]
    model, x = build(), torch.randn(shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "MACs not counted")
        assert count_macs(model, x) == expected
        assert sum(row.executed for row in layer_macs(model, x)) == expected
    if case not in ("without a batch", "transposed, without a batch", "addmm", "an empty batch"):
        assert count_macs(model, x, per_image=True).sum() == expected


def test_attention_counts_its_projections_only():
    x = torch.randn(TOKENS)
    for batch_first in (True, False):
        attention = nn.MultiheadAttention(E, 2, batch_first=batch_first)
        assert count_macs(attention, (x, x, x)) == ATTENTION
    memory = torch.randn(N, 3, E)
    attention = nn.MultiheadAttention(E, 2, batch_first=True)
    assert count_macs(attention, (x, memory, memory)) == 2 * PROJECTED * E + 2 * N * 3 * E * E

    class Queries(nn.Module):
        """Learned queries look at the tokens: products of activations, though a query is made of weights alone."""

        def __init__(self):
            super().__init__()
            self.queries = nn.Parameter(torch.randn(4, E))
            self.project = nn.Linear(E, E)

        def forward(self, x):
            return (self.project(self.queries) @ x.mT).softmax(-1) @ x

    assert count_macs(Queries(), x) == 4 * E * E


def test_dicts_and_lists_of_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(E, 3), nn.Linear(E, 5)

        def forward(self, left, right=None):
            return self.left(left).sum() + (0 if right is None else self.right(right).sum())

    x = torch.randn(N, E)
    assert count_macs(Two(), {"left": x, "right": x}, per_image=True).tolist() == [8 * E] * N
    assert count_macs(Two(), (x, x)) == N * 8 * E


def test_packed_sequences_count_what_they_hold():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(E, 5)

        def forward(self, x):
            lengths = torch.tensor([T, 3])
            return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1]

    assert count_macs(Reads(), torch.randn(TOKENS)) == (T + 3) * 4 * (E * 5 + 25)
    with pytest.raises(accel.errors.AccelError, match="packed sequences"):
        count_macs(Reads(), torch.randn(TOKENS), per_image=True)


@torch.library.custom_op("test_counting::mystery", mutates_args=())
def mystery(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


def optimised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.optimize_for_inference(torch.jit.script(net()))


@pytest.mark.parametrize(
    ("build", "shape", "named", "counted"),
    [
        (lambda: nn.Sequential(Calls(mystery, E, 5)), TOKENS, "test_counting.mystery in 0", 0),
        (lambda: Calls(lambda x, w: F.bilinear(x, x, w), 5, E, E), TOKENS, "aten.bilinear in the model", 0),
        (lambda: Calls(lambda x, w: w.to_sparse() @ x[0].mT, 5, E), TOKENS, "aten.mm in the model", 0),
        (optimised, PICTURE, "prim.mkldnn_convolution", N * 144 * 5),
    ],
)
def test_what_cannot_be_counted_is_named(build, shape, named, counted):
    model, x = build().eval(), torch.randn(shape)
    with pytest.warns(UserWarning, match="MACs not counted") as caught:
        assert count_macs(model, x) == counted
    assert named in str(caught[0].message)
    assert any(row.uncounted for row in layer_macs(model, x))


def test_a_submodule_may_have_a_result_of_its_own():
    block = net()
    block.result = "mine"
    block[0].result = None
    assert count_macs(nn.Sequential(block), torch.zeros(PICTURE)) == NET


def test_the_stages_of_an_adaptive_network_have_a_dense_count():
    model = get_model("zoo:resnet32_cifar_sact")
    x = torch.randn(2, 3, 32, 32)
    rows = {row.name: row for row in layer_macs(model, x)}
    stages = [stage for name, stage in rows.items() if name.startswith("layer")]
    plain = accel.revert_model(model)
    assert sum(row.dense for row in rows.values()) == count_macs(plain, x)
    assert sum(row.executed for row in rows.values()) == count_macs(model, x)
    assert len(stages) == 3 and all(0 < stage.executed < 1.2 * stage.dense for stage in stages)


NETWORKS = {
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "mobilenet_v3_small": 64,
    "mnasnet0_5": 64,
    "regnet_y_400mf": 32,
    "efficientnet_b0": 32,
    "densenet121": 32,
    "googlenet": 64,
    "convnext_tiny": 32,
    "swin_t": 32,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_three_counters_agree_on_torchvision(name):
    """fvcore counts by the traced graph; torch's counter counts attention's products too, so Swin is left to fvcore."""
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**options).eval()
    x = torch.randn(1, 3, NETWORKS[name], NETWORKS[name])
    macs = count_macs(model, x)
    assert macs == static_macs(model, x)
    if name != "swin_t":
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        assert macs == counter.get_total_flops() // 2


def test_vit_counts_what_attention_projects():
    model = torchvision.models.vit_b_16()
    tokens, width, hidden = 14 * 14 + 1, 768, 3072
    by_hand = 196 * 3 * 256 * width + 12 * tokens * (4 * width * width + 2 * width * hidden) + width * 1000
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) == by_hand == pytest.approx(16.85e9, rel=1e-3)


@torch.library.custom_op("accel::test_counting_project", mutates_args=())
def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


@project.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


def test_an_op_tells_every_counter_by_one_formula():
    def work(args, out):
        x, weight = args
        return Work(x.shape[0], x.shape[0] * weight.numel(), 2 * x.shape[0] * weight.numel())

    register_macs("test_counting_project", work)
    try:
        net, x = Calls(project, 3, 5), torch.randn(4, 5)
        assert count_macs(net, x) == static_macs(net, x) == 4 * 15
        assert [(layer.dense, layer.executed) for layer in layer_macs(net, x)] == [(8 * 15, 4 * 15)]
        assert count_macs(net, x, per_image=True).tolist() == [15] * 4
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        assert counter.get_total_flops() == 2 * 4 * 15
    finally:
        del LEDGER["accel.test_counting_project"], FVCORE_HANDLES["accel::test_counting_project"]

"""What each op multiplies, by the definition of `accel.profiling.flops`: convolutions and linear layers. Our own ops
write their formulas into the ledger of `accel.kernels.counting`; those of torch's ops are here.

Formulas get the arguments of an op, in the order of its schema, and its output. Recurrent layers and attention's
projections are linear layers that torch runs inside one op.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence

from torch import Tensor

from accel.kernels import masked_conv2d, perforated_conv2d  # noqa: F401  (they write to the ledger)
from accel.kernels.counting import LEDGER, Formula, Work


def _even(images: int | None, macs: int) -> Work:
    return Work(images, macs, macs)


def _conv(args: Sequence, out: Tensor) -> Work:
    x, weight = args[0], args[1]
    return _even(len(out) if x.dim() == weight.dim() else 1, out.numel() * math.prod(weight.shape[1:]))


def _transposed(args: Sequence, out: Tensor) -> Work:
    x, weight = args[0], args[1]
    return _even(len(out) if x.dim() == weight.dim() else 1, x.numel() * math.prod(weight.shape[1:]))


def _convolution(args: Sequence, out: Tensor) -> Work:
    transposed = args[6]
    return _transposed(args, out) if transposed else _conv(args, out)


def _time_conv(args: Sequence, out: Tensor) -> Work:
    """conv_tbc: x [T, N, C], weight [taps, C, K]."""
    return _even(out.shape[1], out.numel() * math.prod(args[1].shape[:2]))


def _linear(args: Sequence, out: Tensor) -> Work:
    x, weight = args[0], args[1]
    return _even(math.prod(x.shape[:-1]), x.numel() * weight.shape[0])


def _packed_conv(args: Sequence, out: Tensor) -> Work:
    weight = args[1].unpack()[0]
    return _even(len(out), out.numel() * math.prod(weight.shape[1:]))


def _packed_linear(args: Sequence, out: Tensor) -> Work:
    return _linear((args[0], args[1].unpack()[0]), out)


def _recurrent(args: Sequence, _out: object) -> Work:
    """lstm, gru, rnn of x [T, N, C] or [N, T, C]: every matrix once a step."""
    x, params = args[0], args[2]
    steps = math.prod(x.shape[:-1])
    return _even(steps, steps * _matrices(params))


def _recurrent_packed(args: Sequence, _out: object) -> Work:
    rows, params = args[0], args[3]
    return _even(None, len(rows) * _matrices(params))


def _cell(args: Sequence, _out: object) -> Work:
    x, weights = args[0], args[2:4]
    images = math.prod(x.shape[:-1])
    return _even(images, images * _matrices(weights))


def _matrices(params: Sequence[Tensor]) -> int:
    return sum(param.numel() for param in params if param.dim() == 2)


def _attention(args: Sequence, _out: object) -> Work:
    """The projections of query, key and value, and that of the result, which is as long as the query."""
    query, key, value, width = args[:4]
    rows = query.numel() // width
    return _even(rows, (2 * query.numel() + key.numel() + value.numel()) * width)


def _encoder_layer(args: Sequence, _out: object) -> Work:
    x, width = args[0], args[1]
    rows = x.numel() // width
    return _even(rows, rows * sum(args[k].numel() for k in (3, 5, 14, 16)))  # query, key and value; out; the two layers


def product(left: Tensor, right: Tensor) -> Work:
    """A product of matrices, of a batch of them, or of a matrix and a vector, all images alike."""
    macs = left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
    return _even(macs, macs)


def _of(formula: Formula, library: str, names: str) -> dict[str, Formula]:
    return {f"{library}.{name}": formula for name in names.split()}


# By the name of the op, or of its overload: many exist only in some builds of torch, or once a package is imported.
_TORCHS: dict[str, Formula] = {
    **_of(_conv, "aten", "conv1d conv2d conv3d mkldnn_convolution cudnn_convolution cudnn_convolution_relu"),
    **_of(_conv, "aten", "cudnn_convolution_add_relu miopen_convolution miopen_depthwise_convolution"),
    **_of(_conv, "aten", "thnn_conv2d slow_conv3d slow_conv_dilated2d slow_conv_dilated3d"),
    **_of(_conv, "aten", "_slow_conv2d_forward slow_conv3d_forward _conv_depthwise2d conv_depthwise3d"),
    **_of(_conv, "torchvision", "deform_conv2d"),
    **_of(_transposed, "aten", "conv_transpose1d conv_transpose2d conv_transpose3d cudnn_convolution_transpose"),
    **_of(_transposed, "aten", "miopen_convolution_transpose slow_conv_transpose2d slow_conv_transpose3d"),
    **_of(_convolution, "aten", "convolution _convolution convolution_overrideable"),
    **_of(_time_conv, "aten", "conv_tbc"),
    **_of(_linear, "aten", "linear mkldnn_linear _weight_int8pack_mm"),
    **_of(_cell, "aten", "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    **_of(_recurrent, "aten", "lstm.input gru.input rnn_tanh.input rnn_relu.input"),
    **_of(_recurrent_packed, "aten", "lstm.data gru.data rnn_tanh.data rnn_relu.data"),
    **_of(_attention, "aten", "_native_multi_head_attention"),
    **_of(_encoder_layer, "aten", "_transformer_encoder_layer_fwd"),
    **_of(_packed_conv, "quantized", "conv1d conv2d conv3d conv1d_relu conv2d_relu conv3d_relu conv2d_add"),
    **_of(_packed_conv, "quantized", "conv2d_add_relu conv1d_dynamic conv2d_dynamic conv3d_dynamic"),
    **_of(_packed_linear, "quantized", "linear linear_relu linear_leaky_relu linear_tanh linear_dynamic"),
    **_of(_packed_linear, "quantized", "linear_relu_dynamic linear_dynamic_fp16 linear_relu_dynamic_fp16"),
}
FORMULAS: Mapping[str, Formula] = ChainMap(LEDGER, _TORCHS)

# Products of matrices, and which of their arguments are multiplied: a linear layer where one of the two is made of the
# model's own tensors alone.
PRODUCTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot", "aten._int_mm"), (0, 1)),
    **dict.fromkeys(("aten.addmm", "aten.addmm_", "aten._addmm_activation", "aten.addmv", "aten.addmv_"), (1, 2)),
    **dict.fromkeys(("aten.baddbmm", "aten.baddbmm_", "aten.addbmm", "aten.addbmm_"), (1, 2)),
}

# They multiply by weights in ways that no formula here knows, or by what is no layer of this definition.
UNKNOWN = frozenset(
    {
        *("aten.bilinear", "aten._trilinear", "aten._foreach_mm", "aten._scaled_mm", "aten._grouped_mm"),
        *("aten._sparse_mm", "aten._sparse_addmm", "aten._sparse_semi_structured_linear", "aten._cslt_sparse_mm"),
        *("aten._sparse_semi_structured_mm", "aten._sparse_semi_structured_addmm", "aten._scaled_grouped_mm"),
        *("aten._mixed_dtypes_linear", "aten._dyn_quant_matmul_4bit", "aten._weight_int4pack_mm"),
        *("aten._weight_int4pack_mm_for_cpu", "aten.mkldnn_rnn_layer", "aten._cudnn_rnn", "aten.miopen_rnn"),
    }
)

# Attention proper: it multiplies activations with each other, which counts nothing.
NOTHING = frozenset({"aten.scaled_dot_product_attention"})

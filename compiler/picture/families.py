"""Operator families and their colours: what a reader of a picture tells apart at a glance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """``strong``: colour of outlines and fused nodes; ``tint``: fill of other nodes."""

    name: str
    strong: str
    tint: str
    ops: frozenset[str] = frozenset()


def _family(name: str, strong: str, tint: str, ops: str = "") -> Family:
    return Family(name, strong, tint, frozenset(ops.split()))


FAMILIES = (
    _family(
        "attention", "#6d28d9", "#f0eafc",
        "Attention MultiHeadAttention GroupQueryAttention DecoderMaskedMultiHeadAttention "
        "PackedAttention RotaryEmbedding",
    ),
    _family(
        "matrix product", "#1d4ed8", "#e8effd",
        "MatMul Gemm FusedMatMul FusedGemm MatMulNBits MatMulInteger DynamicQuantizeMatMul "
        "QLinearMatMul Einsum MatMulIntegerToFloat TransposeMatMul GemmFastGelu MatMulBnb4 MoE QMoE",
    ),
    _family(
        "convolution", "#0e7490", "#e3f3f6",
        "Conv ConvTranspose FusedConv NhwcFusedConv ConvInteger QLinearConv DeformConv MaxPool "
        "AveragePool GlobalAveragePool GlobalMaxPool LpPool Resize Upsample",
    ),
    _family("recurrent", "#a21caf", "#f9e9fa", "LSTM GRU RNN"),
    _family(
        "normalization", "#c2410c", "#fdeee5",
        "LayerNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization "
        "GroupNormalization SkipSimplifiedLayerNormalization BatchNormalization InstanceNormalization "
        "GroupNorm LpNormalization LRN EmbedLayerNormalization SkipGroupNorm",
    ),
    _family(
        "activation", "#15803d", "#e6f4ea",
        "Relu Gelu FastGelu QuickGelu BiasGelu Sigmoid Tanh Softmax LogSoftmax Silu Swish Elu Selu "
        "LeakyRelu PRelu HardSigmoid HardSwish Mish Softplus Erf Clip ThresholdedRelu Celu "
        "BiasSoftmax",
    ),
    _family(
        "quantization", "#a16207", "#f8f1dd",
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear Cast CastLike",
    ),
    _family(
        "data movement", "#475569", "#eef1f5",
        "Reshape Transpose Slice Gather GatherND GatherElements Concat Split Squeeze Unsqueeze Expand "
        "Tile Pad Flatten Shape Size Identity ScatterND ScatterElements TensorScatter Range "
        "ConstantOfShape Compress NonZero DepthToSpace SpaceToDepth Where Trilu OneHot EyeLike TopK "
        "Constant",
    ),
    _family("control flow", "#be123c", "#fce8ec", "If Loop Scan SequenceMap"),
)  # fmt: skip
OTHER = _family("arithmetic and other", "#57534e", "#f3f1ef")
_BY_OP = {op: family for family in FAMILIES for op in family.ops}


def family_of(op_type: str) -> Family:
    """The family of an operator type of any domain.

    >>> family_of("FusedConv").name
    'convolution'
    """
    return _BY_OP.get(op_type, OTHER)

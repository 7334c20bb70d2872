"""The operators of `ai.onnx`: since which opset each is standard, and from which on it is deprecated.

From the schemas of onnx 1.23 (opset 28); a test compares them. It knows no graph.
https://github.com/onnx/onnx/blob/main/docs/Changelog.md
"""

from __future__ import annotations

__all__ = ["STANDARD_DOMAIN", "not_standard"]

STANDARD_DOMAIN = "ai.onnx"

_NEW_IN = {
    1: (
        "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv "
        "ConvTranspose DepthToSpace Div Dropout Elu Equal Exp Flatten Floor GRU Gather Gemm GlobalAveragePool "
        "GlobalLpPool GlobalMaxPool Greater HardSigmoid Hardmax Identity If InstanceNormalization LRN LSTM "
        "LeakyRelu Less Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool MaxRoiPool Mean Min Mul Neg "
        "Not Or PRelu Pad Pow RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal "
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare Relu Reshape Selu Shape Sigmoid Size Slice Softmax Softplus Softsign SpaceToDepth Split "
        "Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Upsample Xor"
    ),
    7: "Acos Asin Atan Cos Multinomial Sin Tan",
    8: "Expand Scan",
    9: (
        "Acosh Asinh Atanh Compress ConstantOfShape Cosh Erf EyeLike IsNaN MaxUnpool MeanVarianceNormalization "
        "NonZero OneHot Scatter Shrink Sign Sinh TfIdfVectorizer Where"
    ),
    10: (
        "ConvInteger DequantizeLinear IsInf MatMulInteger Mod NonMaxSuppression QLinearConv QLinearMatMul "
        "QuantizeLinear Resize ReverseSequence RoiAlign StringNormalizer ThresholdedRelu"
    ),
    11: (
        "BitShift ConcatFromSequence CumSum Det DynamicQuantizeLinear GatherElements GatherND Range Round "
        "ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert "
        "SequenceLength SplitToSequence Unique"
    ),
    12: "Celu Einsum GreaterOrEqual LessOrEqual NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    14: "HardSwish Trilu",
    15: "Bernoulli CastLike Optional OptionalGetElement OptionalHasElement",
    16: "GridSample",
    17: "BlackmanWindow DFT HammingWindow HannWindow LayerNormalization MelWeightMatrix STFT SequenceMap",
    18: "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Mish",
    19: "DeformConv",
    20: "AffineGrid Gelu ImageDecoder RegexFullMatch StringConcat StringSplit",
    21: "GroupNormalization",
    23: "Attention RMSNormalization RotaryEmbedding",
    24: "Swish TensorScatter",
    26: "BitCast CumProd",
    27: "CausalConvWithState LinearAttention",
    28: "SwiGLU",
}
_SINCE = {name: opset for opset, names in _NEW_IN.items() for name in names.split()}
_DEPRECATED_SINCE = {"Scatter": 11, "Upsample": 10}
_DEPRECATED_UNTIL = {"GroupNormalization": (18, 21)}


def not_standard(operator: str, opset: int) -> str | None:
    """Why `opset` of `ai.onnx` does not hold `operator`, as the end of a sentence; None where it does."""
    first, last = _DEPRECATED_UNTIL.get(operator, (0, 0))
    if first <= opset < last or opset >= _DEPRECATED_SINCE.get(operator, opset + 1):
        return f"which opset {opset} deprecates"
    return None if opset >= _SINCE.get(operator, opset + 1) else f"which opset {opset} does not have"

"""Whether onnxruntime's products of 8-bit integers are exact on this processor.

x86 processors without VNNI add the products of neighbouring channels in 16 bits, and onnxruntime uses all 8 bits of
weights: 2 x 255 x 127 becomes 32,767. It has exact kernels, too, which a session gets on request; where there is VNNI
they are slower. Processors are not told apart by name: a product that would saturate is computed. Only graphs with such
products ask: for others the request changes nothing but `DequantizeLinear` of signed bytes, which onnxruntime (1.32)
then gives one zero point where it takes one for each scale, and fails.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort

EXACT = "session.x64quantprecision"  # asks for exact kernels
# MatMulInteger of x, uint8 [1, 2], and two weights of 127; a test makes it anew with the `onnx` package.
PRODUCT = bytes.fromhex(
    "080812003a560a180a01780a0177120179220d4d61744d756c496e74656765721201672a0d0802080110034201774a027f7f5a130a0178120e"
    "0a0c080212080a0208010a02080262130a0179120e0a0c080612080a0208010a02080142040a00100a"
)
INTEGER_OPERATORS = (  # that multiply 8-bit integers, or that onnxruntime fuses into ones that do
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "ConvInteger",
    "QLinearConv",
    "QuantizeLinear",
)
OPERATOR = 4 << 3 | 2  # tag of NodeProto.op_type in onnx.proto
LARGEST = np.full((1, 2), 255, np.uint8)
SUM = 2 * 255 * 127


@cache
def saturates() -> bool:
    """Whether products of unsigned and signed 8-bit integers saturate, unless a session asks for exact ones."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = ort.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    return bool(session.run(None, {"x": LARGEST})[0] != SUM)


def multiplies_integers(model: bytes) -> bool:
    """Whether a serialized ModelProto has an operator that multiplies 8-bit integers, in any of its graphs."""
    return any(bytes([OPERATOR, len(name)]) + name.encode() in model for name in INTEGER_OPERATORS)

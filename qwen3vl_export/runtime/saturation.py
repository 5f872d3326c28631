"""Whether onnxruntime's products of 8-bit integers are exact on this processor.

x86 processors without VNNI add the products of neighbouring channels in 16 bits, and onnxruntime uses all 8 bits of
weights: 2 x 255 x 127 becomes 32,767. It has exact kernels, too, which a session gets on request; where there is VNNI
they are slower. Processors are not told apart by name: a product that would saturate is computed.
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
LARGEST = np.full((1, 2), 255, np.uint8)
SUM = 2 * 255 * 127


@cache
def saturates() -> bool:
    """Whether products of unsigned and signed 8-bit integers saturate, unless a session asks for exact ones."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = ort.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    return bool(session.run(None, {"x": LARGEST})[0] != SUM)

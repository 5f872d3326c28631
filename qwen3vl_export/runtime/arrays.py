"""Names for the array types that pass between the runtime's modules."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]  # float16 or float32, whichever the graph uses
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

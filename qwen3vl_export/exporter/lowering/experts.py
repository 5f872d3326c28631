"""The `Experts` placeholder in real operators, per target; only the weights of chosen experts are read when it runs.

    ort       `com.microsoft.MoE`, which iterates over the chosen experts itself
    portable  a Loop over the experts that any token chose: gather their tokens, two MatMul, add back (ScatterND)

In float16 both targets have the Loop, unless the recipe says `experts: operator`: onnxruntime's CPU MoE is a float32
kernel, for which it keeps a float32 copy of every expert, while the Loop converts only the chosen ones. On a GPU the
operator is a float16 kernel, and the Loop waits for the CPU once per expert.

The weights enter as transformers stores them, [E, 2 * I, H] and [E, H, I]. Transpose and Reshape nodes arrange them as
the operators need them, and none moves the first axis: `weights/inputs.py` folds them into the stored bytes, which are
streamed expert by expert.

Legend: E experts, H hidden size, I inner size of an expert.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from ...promise import EXPERTS_AS_OPERATOR
from ..opsets import MICROSOFT
from ..submodules.experts import EXPERTS
from ..submodules.geometry import PLACEHOLDER_DOMAIN
from ..trace import OPSET

OLDEST_ONNXRUNTIME = "1.23.2"  # the first whose CPU provider has a float32 MoE
OLDEST_WITH_ACCURACY_LEVEL = "1.31.0"  # the first whose QMoE, its quantized sibling, takes one
OLDEST_WITH_RAW_WEIGHTS = "1.28.0"  # the first whose QMoE says in which order its integers are
_FORM = "experts"  # the key of a mark on placeholders

_HEADER = f"""<domain: "{PLACEHOLDER_DOMAIN}", opset_import: ["" : {OPSET}, "{MICROSOFT}" : 1]>
{EXPERTS} (x, chosen, shares, gate_up, down) => (out)"""

# MoE has a softmax and top k of its own. A softmax over the logarithms of shares that sum to 1 returns the shares, and
# every other expert is too unlikely to be chosen. onnxruntime's CPU kernel requires gate and up rows interleaved.
_MOE = """{{
    by_kind = Constant <value_ints: ints = [{experts}, 2, {inner}, {hidden}]> ()
    stacked = Constant <value_ints: ints = [{experts}, {both}, {hidden}]> ()
    gate_up_4d = Reshape (gate_up, by_kind)
    pairs = Transpose <perm: ints = [0, 2, 1, 3]> (gate_up_4d)
    interleaved = Reshape (pairs, stacked)
    tokens = Shape <start: int = 0, end: int = 1> (x)
    width = Constant <value_ints: ints = [{experts}]> ()
    shape = Concat <axis: int = 0> (tokens, width)
    {router}
    out = com.microsoft.MoE <k: int = {top_k}, normalize_routing_weights: int = 1, activation_type: string = "swiglu",
        swiglu_fusion: int = 1, activation_alpha: float = 1.0, activation_beta: float = 0.0>
        (x, router, interleaved, , down)
}}"""

_ROUTER = """never = ConstantOfShape <value: tensor = float[1] {-3.0e38}> (shape)
    logits = Log (shares)
    router = ScatterElements <axis: int = 1> (never, chosen, logits)"""

# In float16 a share is first divided by the token's largest, whose logarithm then is 0: a logarithm far from 0 would be
# rounded by up to 0.004, and the share with it.
_ROUTER_IN_HALF = """never = ConstantOfShape <value: tensor = float[1] {-65504.0}> (shape)
    last = Constant <value_ints: ints = [-1]> ()
    shares_32 = Cast <to: int = 1> (shares)
    most = ReduceMax (shares_32, last)
    ratios = Div (shares_32, most)
    logits = Log (ratios)
    router_32 = ScatterElements <axis: int = 1> (never, chosen, logits)
    router = Cast <to: int = 10> (router_32)"""

# Sums in float32 for every dtype. {widen} is a Cast to float32, or Identity where there is nothing to cast.
_LOOP = """{{
    gate_up_t = Transpose <perm: ints = [0, 2, 1]> (gate_up)
    down_t = Transpose <perm: ints = [0, 2, 1]> (down)
    last = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_ints: ints = [0]> ()
    x_32 = {widen} (x)
    shares_32 = {widen} (shares)
    chosen_flat = Reshape (chosen, last)
    hit = Unique (chosen_flat)
    count_1 = Shape (hit)
    count = Squeeze (count_1, first)
    go = Constant <value: tensor = bool {{1}}> ()
    shape = Shape (x)
    zero = ConstantOfShape (shape)
    sum = Loop (count, go, zero) <body = each (int64 i, bool c, float[n, {hidden}] before)
        => (bool again, float[n, {hidden}] after) {{
        again = Identity (c)
        expert = Gather (hit, i)
        is_here = Equal (chosen, expert)
        here = NonZero (is_here)
        token_1, place_1 = Split <axis: int = 0, num_outputs: int = 2> (here)
        token = Squeeze (token_1, first)
        token_place = Transpose (here)
        share = GatherND (shares_32, token_place)
        share_2d = Unsqueeze (share, last)
        rows = Gather (x_32, token)
        gate_up_here = Gather (gate_up_t, expert)
        gate_up_32 = {widen} (gate_up_here)
        both = MatMul (rows, gate_up_32)
        gate, up = Split <axis: int = -1, num_outputs: int = 2> (both)
        gate_sigmoid = Sigmoid (gate)
        silu = Mul (gate, gate_sigmoid)
        inner = Mul (silu, up)
        down_here = Gather (down_t, expert)
        down_32 = {widen} (down_here)
        rows_out = MatMul (inner, down_32)
        part = Mul (rows_out, share_2d)
        token_2d = Unsqueeze (token, last)
        after = ScatterND <reduction: string = "add"> (before, token_2d, part)
    }}>
    out = {narrow} (sum)
}}"""


def use_operator(model: ir.Model) -> ir.Model:
    """Mark the placeholders of a skeleton, so that the operator computes them whatever their dtype."""
    for node in model.graph:
        if (node.domain, node.op_type) == (PLACEHOLDER_DOMAIN, EXPERTS):
            node.metadata_props[_FORM] = EXPERTS_AS_OPERATOR
    return model


def build_experts_function(node: ir.Node, target: str) -> ir.Function:
    """The body of `Experts` for the sizes of `node`; all layers of a decoder share them."""
    _, chosen, _, gate_up, down = node.inputs
    assert chosen is not None and gate_up is not None and gate_up.dtype is not None and down is not None
    assert chosen.shape is not None and gate_up.shape is not None and down.shape is not None
    experts, hidden, inner = down.shape
    is_float32 = gate_up.dtype == ir.DataType.FLOAT
    has_operator = target == "ort" and (is_float32 or node.metadata_props.get(_FORM) == EXPERTS_AS_OPERATOR)
    body = (_MOE if has_operator else _LOOP).format(
        router=_ROUTER if is_float32 else _ROUTER_IN_HALF,
        experts=experts,
        hidden=hidden,
        inner=inner,
        both=gate_up.shape[1],
        top_k=chosen.shape[1],
        widen="Identity" if is_float32 else f"Cast <to: int = {ir.DataType.FLOAT.value}>",
        narrow="Identity" if is_float32 else f"Cast <to: int = {gate_up.dtype.value}>",
    )
    return ir.serde.deserialize_function(parser.parse_function(f"{_HEADER} {body}"))

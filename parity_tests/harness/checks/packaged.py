"""The decoder of onnxruntime-genai beside that of transformers.js, which all other checks run: two files of one graph.

Both get the same rows. Their logits and caches must be equal bit for bit, and the last row the same where it is asked
for alone. One of them is in memory at a time, or one of its pieces where they are cut.

Legend: S tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_export.contract import (
    ATTENTION_MASK,
    DECODER,
    INPUTS_EMBEDS,
    LOGITS,
    NUM_LOGITS_TO_KEEP,
    POSITION_IDS,
    decoder,
    past_name,
)
from qwen3vl_export.promise import second_decoder
from qwen3vl_export.runtime.session import session_options

from ..judging.measures import differences, max_abs
from ..judging.outcome import Finding
from ..sides.bench import Bench

TOKENS = 9  # S


def compare_decoders(bench: Bench) -> Finding:
    """Logits [1, S, V] and the cache of both decoders, and the first one's last row alone [1, 1, V]."""
    sessions = bench.runtime.sessions
    feeds = random_rows(bench)
    outputs = [tensor.name for tensor in decoder(sessions.facts).outputs]
    with bench.timing():
        every = sessions.run(DECODER, {**feeds, NUM_LOGITS_TO_KEEP: np.array(0)}, outputs)
        (last,) = sessions.run(DECODER, {**feeds, NUM_LOGITS_TO_KEEP: np.array(1)}, [LOGITS])
        dtypes = sessions.dtypes(DECODER)
        sessions.close()
        path = bench.artifact.root / second_decoder(bench.artifact.manifest.graphs[DECODER]["file"])
        second = sessions.load(path, session_options(DECODER, sessions.threads))
        results = second.run(outputs, {name: array.astype(dtypes[name]) for name, array in feeds.items()})
    pairs = list(zip(results, every, strict=True))
    measures = {
        "differences": sum(differences(result, expected) or 0 for result, expected in pairs),
        "last_row_max_abs": max_abs(results[0][:, -1:], last),
    }
    return Finding(measures, compared=sum(result.size for result in results))


def random_rows(bench: Bench) -> dict[str, NDArray[Any]]:
    """What a decoder without `num_logits_to_keep` takes: S rows as large as a token's, and an empty cache."""
    facts = bench.artifact.manifest.facts
    ids = np.random.default_rng(0).integers(0, facts.vocab_size, (1, TOKENS))
    past = np.zeros((1, facts.num_key_value_heads, 0, facts.head_dim), np.float32)
    return {
        INPUTS_EMBEDS: bench.embed(ids, bench.no_features()),
        ATTENTION_MASK: np.ones((1, TOKENS), np.int64),
        POSITION_IDS: np.broadcast_to(np.arange(TOKENS), (3, 1, TOKENS)),
        **{past_name(layer, part): past for layer in range(facts.num_hidden_layers) for part in ("key", "value")},
    }

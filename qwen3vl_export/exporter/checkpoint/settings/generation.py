"""How answers are chosen and ended, as transformers' `generate` reads it from a checkpoint.

Knows `generation_config.json`; chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ....contract import TEXT, Facts
from ....errors import CheckpointError, InputError
from ....promise import GENAI
from ....runtime.sampling import from_generation_config
from .sources import refuse, stored_json, to_bytes

FILE = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
HONOURED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
# What decides how `generate` runs and what it returns, or how long an answer may be: not which tokens are chosen.
WITHOUT_EFFECT = (
    "transformers_version",
    "_from_model_config",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "prefill_chunk_size",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "low_memory",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "early_stopping",  # of beams
    "length_penalty",  # of beams
    "diversity_penalty",  # of groups of beams
    "decoder_start_token_id",  # of encoder-decoder models
    "renormalize_logits",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
)
LENGTHS = ("max_length", "max_new_tokens", "max_time")  # callers of the runtimes set them
MISSING_FROM = {GENAI: ("min_p", "presence_penalty")}  # honoured settings that a packaged runtime does not know


def load_generation_config(root: Path) -> GenerationConfig:
    """The settings that a model loaded from this directory has: its file's, else what `config.json` says.

    As `GenerationMixin.adjust_generation_fn` of transformers.
    """
    if (root / FILE).is_file():
        config: GenerationConfig = GenerationConfig.from_pretrained(root)
        return config
    return GenerationConfig.from_pretrained(root, config_file_name="config.json", _from_model_config=True)


def read_generation(root: Path, facts: Facts, eos_token: str) -> tuple[bytes, tuple[str, ...]]:
    """`generation_config.json` with what transformers reads, and what is to be said about it.

    A model that gives no answers has no settings for them.

    Args:
        eos_token: what the tokenizer calls the end of a turn, for the advice.

    Raises:
        CheckpointError: settings that transformers cannot read, that runtimes do not follow, or that end no answer.
    """
    if facts.head != TEXT:
        return to_bytes({}), ()
    where = root / (FILE if (root / FILE).is_file() else "config.json")
    with refuse(where, "generation settings", f"Take {FILE} from the published checkpoint"):
        config = load_generation_config(root)
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    check_honoured(values, where)
    check_stop_ids(values.get("eos_token_id"), facts, where, eos_token)
    try:
        from_generation_config(values)
    except InputError as error:
        raise CheckpointError(f"{where}: {error.what}", f"Correct {FILE}; do_sample: false is greedy") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: not the settings of an answer ({error})", f"Correct {FILE}") from error
    written = {name: values[name] for name in (*TOKENS, *HONOURED) if name in values}
    stored = stored_json(root, FILE) or {}
    alike = bool(stored) and written == {name: stored[name] for name in written if name in stored}
    return (root / FILE).read_bytes() if alike else to_bytes(written), tuple(describe_ignored(stored))


def describe_ignored(stored: Mapping[str, Any]) -> Iterator[str]:
    """A line for each stored setting that the artifact's answers do not follow."""
    for name, value in stored.items():
        if name in LENGTHS and value is not None:
            yield f"{FILE}: {name} is not followed: callers set the length of answers"
        elif name not in (*TOKENS, *HONOURED, *WITHOUT_EFFECT) and name not in GenerationConfig().to_dict():
            yield f"{FILE}: {name} is ignored, as by transformers"


def check_honoured(values: Mapping[str, Any], where: Path) -> None:
    """Refuse settings that would change answers and that runtimes do not follow.

    Raises:
        CheckpointError: there is one; it is named.
    """
    known = GenerationConfig().to_dict()
    defaults = GenerationConfig._get_default_generation_params() | {"guidance_scale": 1.0}
    for name, value in values.items():
        if name not in known or name in (*TOKENS, *HONOURED, *WITHOUT_EFFECT, *LENGTHS):
            continue
        if value and value != defaults.get(name):
            raise CheckpointError(
                f"{where}: {name} is {value!r}, which no runtime of an artifact does",
                f"Remove {name}, if answers without it are what you want",
            )


def check_packaged(values: Mapping[str, Any], runtimes: Sequence[str], root: Path) -> None:
    """Refuse settings that a runtime the artifact is packaged for would leave out.

    Raises:
        CheckpointError: there is one; it is named.
    """
    for runtime in runtimes:
        for name in MISSING_FROM.get(runtime, ()):
            if values.get(name):
                raise CheckpointError(
                    f"{root / FILE}: {name} is {values[name]!r}, which {runtime} does not know",
                    f"Remove {name}, or leave {runtime} out of packaging.runtimes",
                )


def check_stop_ids(stop_ids: Any, facts: Facts, where: Path, eos_token: str) -> None:
    """Refuse answers that would not end.

    Raises:
        CheckpointError: no id, or one that the model cannot choose.
    """
    ids = stop_ids if isinstance(stop_ids, list) else [stop_ids]
    if stop_ids is None or not ids:
        raise CheckpointError(
            f"{where}: no eos_token_id, so that no answer would end",
            f"Add {FILE} with the id of {eos_token or 'the token that ends a turn'}",
        )
    for stop_id in ids:
        if not isinstance(stop_id, int) or not 0 <= stop_id < facts.vocab_size:
            raise CheckpointError(
                f"{where}: eos_token_id is {stop_ids!r}, the model has the ids 0 to {facts.vocab_size - 1}",
                f"Correct it in {FILE}",
            )

"""The tiny tokenizer: a small byte-level BPE followed by Qwen's 26 special tokens in their real order.

Knows the text of the questions, which it learns merges from. Does not know the model.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from parity_tests.harness.cases.questions import ORDINALS, SCENE_KINDS, Turn, ask_many, ask_scene, ask_text
from parity_tests.harness.cases.scenes import DrawnScene, Thing, choose_things
from scripts.tiny_training.photographs import NAMED_COLORS, SUBJECTS

BASE_VOCABULARY = 512  # 256 bytes and 256 merges
# Id of special token i is BASE_VOCABULARY + i, as in the published models it is 151643 + i.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKUP_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
# Qwen2's pre-tokenizer: words with their leading space, single digits, punctuation, line breaks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FIXED_TEXTS = (
    "user",
    "assistant",
    "system",
    "You are a helpful assistant.",
    "What number is this?",
    "How many digits are there?",
    "What is the first digit?",
    "What is the last digit?",
    "Read all the digits.",
    "Read row 1.",
    "Read column 2.",
    "What digit is in row 1, column 2?",
    "Which picture has more shapes?",
    "Which way does the shape move?",
    "it does not move",
    "What is in the video?",
    "<0.2 seconds>",
    "Is this a photograph or a drawing?",
    "Is the picture bright or dark?",
    "Is the picture wide or tall?",
    "square",
    "What is this?",
    "What is the main color?",
    "What animal is this?",
    "Which picture is a photograph?",
)


def train_tokenizer(seed: int = 1) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(random.Random(f"train-tokenizer-{seed}")), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    last = tokenizer.token_to_id(MARKUP_TOKENS[-1])
    expected = BASE_VOCABULARY + len(CONTROL_TOKENS) + len(MARKUP_TOKENS) - 1
    if last != expected:
        raise ValueError(f"special tokens do not follow the base vocabulary: {MARKUP_TOKENS[-1]} is {last}")
    return tokenizer


def texts(rng: random.Random, count: int = 20_000) -> Iterator[str]:
    """Questions and answers as they are asked in training; nothing is drawn for them."""
    drawing = [kind for kind in SCENE_KINDS if kind != "look"]  # these do not look at pixels
    for index in range(count):
        things = choose_things(rng, rng.sample(range(9), rng.randint(1, 5)))
        yield from words(ask_scene(rng, blank(things), rng.choice(drawing)))
        yield from words(ask_text(rng))
        if index % 4 == 0:
            pictures = [blank(choose_things(rng, rng.sample(range(9), 2))) for _ in ORDINALS]
            kind = rng.choice(("which", "many_count", "many_describe", "many_at"))
            yield from words(ask_many(rng, pictures, kind))
        if index % 20 == 0:
            yield from FIXED_TEXTS
            yield f"a photograph of {rng.choice(list(SUBJECTS.values()))}"
            yield rng.choice(list(NAMED_COLORS))


def blank(things: tuple[Thing, ...]) -> DrawnScene:
    return DrawnScene(image=None, things=things)  # type: ignore[arg-type]


def words(turn: Turn | None) -> tuple[str, ...]:
    return (turn.prompt, turn.answer) if turn else ()


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen3VLProcessor",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

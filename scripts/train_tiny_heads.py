"""Trains the tiny embedding model and the tiny reranker: LoRA adapters of the tiny checkpoint, as PEFT saves them.

    python -m scripts.train_tiny_heads embedding --out recipes/checkpoints/tiny-embedding    minutes on one CPU core
    python -m scripts.train_tiny_heads reranker --out recipes/checkpoints/tiny-reranker

Needs torch, transformers and peft. Only the decoder is adapted. Everything follows from the seed: the same versions on
the same kind of processor, with OMP_NUM_THREADS=1, write the same bytes.

The reranker judges 72 of 100 pairs right at best, which is not enough to rank by, so no recipe has its adapter.

The embedding model learns with InfoNCE (arXiv:1807.03748) over the captions and pictures of a batch, where captions
that fit several pictures are no negatives; the reranker with the cross-entropy of yes and no.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from qwen3vl_export.contract import EMBEDDING, RERANKER
from qwen3vl_export.exporter.checkpoint import open_checkpoint
from scripts.tiny_training.batches import Encoder
from scripts.tiny_training.forward import last_states, use_text_attention
from scripts.tiny_training.pairs import Drawer, EmbeddingPairs, RerankerPairs

TINY = Path(__file__).resolve().parents[1] / "recipes" / "checkpoints" / "tiny"
BASE = "../tiny"  # relative to the adapter
RANK, ALPHA = 8, 16
TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LEARNING_RATE = {EMBEDDING: 4e-3, RERANKER: 2.5e-3}
WARMUP_STEPS = 20
MAX_GRADIENT_NORM = 1.0
TEMPERATURE = 0.05  # of cosines
COUNT = {EMBEDDING: 32, RERANKER: 12}  # pictures in a batch
STEPS = {EMBEDDING: 600, RERANKER: 500}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LOG_EVERY = 50


def adapt() -> Any:
    """The tiny model whose decoder has an adapter, which alone is trained."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    adapted = get_peft_model(model, config)
    use_text_attention(model)
    return adapted


def embedding_loss(model: nn.Module, batch: EmbeddingPairs) -> tuple[Tensor, float]:
    """InfoNCE from captions to pictures and back, and the share of captions whose picture is the closest."""
    sides = (batch.captions, batch.pictures)
    captions, pictures = (F.normalize(last_states(model, side).float(), dim=-1) for side in sides)
    count = len(pictures)
    cosines = (captions @ pictures.T).float() / TEMPERATURE  # (C, B)
    also = torch.from_numpy(batch.fits) & ~torch.eye(len(captions), count, dtype=torch.bool)
    cosines = cosines.masked_fill(also, -math.inf)
    target = torch.arange(count)
    loss = F.cross_entropy(cosines[:count], target) + F.cross_entropy(cosines.T, target)
    return loss, (cosines[:count].argmax(1) == target).float().mean().item()


def reranker_loss(model: nn.Module, batch: RerankerPairs, answers: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of yes and no, and the share of pairs that are judged right; `answers` are their two rows."""
    yes, no = (last_states(model, batch.pairs).float() @ answers.T).float().unbind(1)
    fits = torch.from_numpy(batch.fits)
    loss = F.binary_cross_entropy_with_logits(yes - no, fits.float())
    return loss, ((yes > no) == fits).float().mean().item()


def train(head: str, out: Path, seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    drawer = Drawer(Encoder(tokenizer), open_checkpoint(str(TINY)).facts, seed, COUNT[head])
    adapted = adapt()
    model = adapted.get_base_model()
    answers = model.lm_head.weight.detach()[[tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")]]
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01)
    started, losses, right = time.monotonic(), 0.0, 0.0
    for step in range(steps):
        rate = LEARNING_RATE[head] * min(1, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            if head == EMBEDDING:
                loss, share = embedding_loss(model, drawer.embedding_pairs(step))
            else:
                loss, share = reranker_loss(model, drawer.reranker_pairs(step, step / steps), answers)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses, right = losses + loss.item(), right + share
        if (step + 1) % LOG_EVERY == 0:
            line = {"step": step + 1, "minutes": round((time.monotonic() - started) / 60, 1)}
            line |= {"loss": round(losses / LOG_EVERY, 4), "right": round(right / LOG_EVERY, 3)}
            print(json.dumps(line), flush=True)
            losses = right = 0.0
    save(adapted, out)


def save(adapted: Any, out: Path) -> None:
    """The adapter as PEFT saves it, in bfloat16, and no path of this machine in it."""
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory)
        adapted.save_pretrained(saved)
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(saved / WEIGHTS).items()}
        settings = json.loads((saved / CONFIG).read_text("utf-8")) | {"base_model_name_or_path": BASE}
    out.mkdir(parents=True, exist_ok=True)
    (out / WEIGHTS).write_bytes(serialize(tensors, metadata={"format": "pt"}))
    (out / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", choices=(EMBEDDING, RERANKER))
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--steps", type=int, help="default 600 and 500")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.head, arguments.out, arguments.seed, arguments.steps or STEPS[arguments.head])


if __name__ == "__main__":
    main()

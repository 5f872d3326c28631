"""Loss, auxiliary heads, optimizers and the learning-rate schedule.

Knows what is minimized and how fast. Everything that changes over time is a function of progress, step / steps.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from scripts.tiny_training.forward import Output
from scripts.tiny_training.patches import IGNORE, LABEL_SIZES

LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 60
FLAT_UNTIL = 0.25  # then a cosine down to FINAL_SHARE of the learning rate
FINAL_SHARE = 0.02
AUXILIARY_WEIGHT = 0.5
AUXILIARY_UNTIL = 0.7
MAX_GRADIENT_NORM = 1.0


def learning_rate(step: int, steps: int) -> float:
    progress = step / steps
    if progress < FLAT_UNTIL:
        return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - FLAT_UNTIL) / (1 - FLAT_UNTIL)))
    return LEARNING_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def auxiliary_weight(progress: float) -> float:
    return AUXILIARY_WEIGHT * max(0.0, 1 - progress / AUXILIARY_UNTIL)


def build_heads(model: Qwen3VLForConditionalGeneration) -> nn.ModuleList:
    """Linear readers of colour, shape, digit and cell from each visual token. They teach the vision tower early and are
    thrown away: without them training stays at guessing for a long time."""
    width = model.config.vision_config.out_hidden_size
    taps = len(model.config.vision_config.deepstack_visual_indexes)
    return nn.ModuleList(nn.Linear(width, sum(LABEL_SIZES)) for _ in range(1 + taps))


def answer_loss(output: Output) -> Tensor:
    """Cross-entropy of answer tokens. Tokens of an answer with n tokens weigh 1 / sqrt(n), so that long descriptions
    do not drown one-word answers."""
    losses = F.cross_entropy(output.logits.float(), output.targets, reduction="none")
    lengths = torch.bincount(output.answer).float()
    weights = lengths[output.answer].rsqrt()
    return (losses * weights).sum() / weights.sum()


def auxiliary_loss(heads: nn.ModuleList, features: list[Tensor], labels: Tensor) -> Tensor:
    total = torch.zeros(())
    for head, feature in zip(heads, features, strict=True):
        parts = head(feature).float().split(LABEL_SIZES, dim=1)
        for column, logits in enumerate(parts):
            target = labels[:, column]
            known = (target != IGNORE).sum().clamp(min=1)
            total = total + F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum") / known
    return total / len(heads)


def build_optimizers(model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, patch embedding, heads, norms and biases."""
    named = [*model.named_parameters(), *heads.named_parameters(prefix="heads")]
    inner = [p for name, p in named if p.ndim == 2 and "embed" not in name and not name.startswith("heads")]
    chosen = {id(p) for p in inner}
    wide = [p for _, p in named if p.ndim >= 2 and id(p) not in chosen]
    vectors = [p for _, p in named if p.ndim < 2]
    muon = torch.optim.Muon(inner, lr=LEARNING_RATE, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": wide, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate

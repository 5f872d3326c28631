"""Runs an exported Qwen3-VL with numpy, onnxruntime, Pillow, tokenizers and jinja2: no torch, no transformers.

    from qwen3vl_export.runtime import Image, Qwen3VL

    model = Qwen3VL.load("artifacts/tiny")
    for piece in model.stream([Image("cat.jpg"), "What is this?"]):
        print(piece, end="", flush=True)

Data flow: `messages`, `items` (one format) → `templates`, `template_data`, `prompt`, `plain_text` (text) and `images`,
`video`, `sizing`, `pixel_budget`, `preprocess` (patches) → `tokenizer`, `positions` → `prepare` (arrays) → `encoders`
(features) → `decoder`, `generate`, `sampling`, `warpers` (tokens) → `answer`, `repetition` (text), `reply` and
`grounding` (parsed text). `retrieval` makes conversations of what is embedded or scored, `heads` vectors and scores of
the decoder's output. `cache` and `conversation` store what was read, `memory` on which device. `stages` and `model`
combine them; `devices`, `session`, `opening` and `external` open the graphs, `locate` and `fetch` open files and URLs;
`sandbox` bounds what a template may compute.
"""

from .answer import Answer, Limits
from .model import Qwen3VL
from .pictures.fetch import UrlRules
from .pictures.frames import FrameChoice
from .pictures.images import Image
from .pictures.picture import Picture
from .pictures.pixel_budget import PixelBudget
from .pictures.video import Video
from .prepare import Prepared
from .prompts.reply import Reply, ToolCall
from .sampling import GREEDY, Sampling

__all__ = [
    "GREEDY",
    "Answer",
    "FrameChoice",
    "Image",
    "Limits",
    "Picture",
    "PixelBudget",
    "Prepared",
    "Qwen3VL",
    "Reply",
    "Sampling",
    "ToolCall",
    "UrlRules",
    "Video",
]

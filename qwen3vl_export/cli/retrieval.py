"""The commands `embed` and `rerank`: vectors and scores of texts, pictures and videos.

Knows options and files; the numbers come from `runtime`, which is imported when a command is called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import say, write_json
from ..errors import InputError
from ..output import whole_file
from .devices import Device, ProviderOption
from .loading import load
from .paths import expand
from .run import AllowPrivateUrls, Artifact, MaxPixels, MinPixels, Precision, Threads

if TYPE_CHECKING:
    from numpy.typing import NDArray


NPY, JSON_LINES = ".npy", ".jsonl"
Texts = Annotated[list[str] | None, typer.Option("--text", "-t", metavar="TEXT", help="A text; can be repeated.")]
Images = Annotated[
    list[str] | None, typer.Option("--image", "-i", metavar="FILE", help="A picture: path or URL; can be repeated.")
]
Videos = Annotated[
    list[str] | None,
    typer.Option("--video", metavar="FILE", help="A video: path, URL, or a folder of frames; can be repeated."),
]
Lines = Annotated[
    Path | None,
    typer.Option(
        parser=expand,
        metavar="FILE",
        help='JSON lines with the keys text, image and video, for inputs of several parts; "-" is standard input.',
    ),
]
Instruction = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What it is for. [default: that of the model's public code]")
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Inputs to compute at a time.")]


def embed(
    artifact: Artifact,
    text: Texts = None,
    image: Images = None,
    video: Videos = None,
    inputs: Lines = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=expand,
            metavar="FILE",
            help="Write float32 [N, dimensions] to FILE.npy, or JSON lines to FILE.jsonl. [default: print JSON lines]",
        ),
    ] = None,
    instruction: Instruction = None,
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the leading N dimensions. [default: all]")
    ] = None,
    batch_size: BatchSize = 8,
    threads: Threads = None,
    allow_private_urls: AllowPrivateUrls = False,
    precision: Precision = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    provider_option: ProviderOption = None,
) -> None:
    """Embed texts, pictures and videos, in this order after those of --inputs, as vectors of length 1.

    Example: `qwen3vl-export embed ARTIFACT --image cat.jpg --image dog.jpg --out pictures.npy`

    Example: `qwen3vl-export embed ARTIFACT --text "a cat on a sofa" --dimensions 256`
    """
    if out is not None and out.suffix not in (NPY, JSON_LINES):
        raise InputError(f"{out}: neither {NPY} nor {JSON_LINES}", f"Write --out vectors{NPY}")
    given = gather(text, image, video, inputs)
    model = load(artifact, threads, allow_private_urls, precision, min_pixels, max_pixels, device, provider_option)
    vectors = model.embed(
        [value for _, value in given], instruction=instruction, dimensions=dimensions, batch_size=batch_size
    )
    if out is None:
        for vector in vectors.tolist():
            write_json(vector)
        return
    save(out, vectors)
    say(f"{out}: {len(vectors)} vectors of {vectors.shape[1]} dimensions", stderr=True)


def rerank(
    artifact: Artifact,
    query: Annotated[str | None, typer.Option("--query", "-q", metavar="TEXT", help="What is looked for.")] = None,
    query_image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A picture of the query: path or URL; can be repeated.")
    ] = None,
    text: Texts = None,
    image: Images = None,
    video: Videos = None,
    inputs: Lines = None,
    instruction: Instruction = None,
    batch_size: BatchSize = 8,
    threads: Threads = None,
    allow_private_urls: AllowPrivateUrls = False,
    precision: Precision = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    provider_option: ProviderOption = None,
) -> None:
    """Score how well texts, pictures and videos meet a query, and print them as JSON lines, the best first.

    Example: `qwen3vl-export rerank ARTIFACT --query "a cat on a sofa" --image cat.jpg --image dog.jpg`
    """
    from ..runtime import Image

    asked: list[Any] = [*map(Image, query_image or []), *([] if query is None else [query])]
    if not asked:
        raise InputError("there is no query", 'Add --query "a cat on a sofa" or --query-image FILE')
    given = gather(text, image, video, inputs)
    model = load(artifact, threads, allow_private_urls, precision, min_pixels, max_pixels, device, provider_option)
    scores = model.rerank(asked, [value for _, value in given], instruction=instruction, batch_size=batch_size)
    for index in (-scores).argsort(kind="stable").tolist():
        write_json({"score": float(scores[index]), "index": index, "document": given[index][0]})


def gather(
    texts: list[str] | None, images: list[str] | None, videos: list[str] | None, lines: Path | None
) -> list[tuple[Any, Any]]:
    """Every input, with what names it in the output.

    Raises:
        InputError: there is none, or a line that is not a JSON object.
    """
    from ..runtime import Image, Video

    given: list[tuple[Any, Any]] = [(value, value) for value in (read_lines(lines) if lines is not None else ())]
    given += [(text, text) for text in texts or []]
    given += [(name, Image(name)) for name in images or []]
    given += [(name, Video(name)) for name in videos or []]
    if not given:
        raise InputError("there is no input", "Add --text, --image, --video, or --inputs FILE")
    return given


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, or of standard input.

    Raises:
        InputError: it cannot be read, or a line is not a JSON object.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        source: Iterable[str] = sys.stdin if str(path) == "-" else path.read_text("utf-8").split("\n")
        lines = [(number, line) for number, line in enumerate(source, 1) if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({error})", "Pass a file of JSON lines") from error
    values = []
    for number, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: line {number} is not JSON ({error})", "Write one object per line") from error
        if not isinstance(value, dict):
            raise InputError(f"{name}: line {number} is not an object", 'Write {"text": …, "image": …} per line')
        values.append(value)
    return values


def save(path: Path, vectors: NDArray[Any]) -> None:
    """Write vectors as a numpy file or as JSON lines, by the ending of its name.

    Raises:
        InputError: it cannot be written.
    """
    import numpy as np

    try:
        with whole_file(path) as partial:
            if path.suffix == NPY:
                with partial.open("wb") as file:
                    np.save(file, vectors)
            else:
                partial.write_text("".join(f"{json.dumps(vector)}\n" for vector in vectors.tolist()), "utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})", "Choose another --out") from error

"""The commands `run` and `chat`: an artifact answers on the terminal.

Knows options and streams; the answers come from `runtime`, which is imported when a command is called.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ..console import console, neutralize, say, write, write_json
from ..contract import TEXT
from ..errors import InputError
from .devices import Device, ProviderOption
from .loading import load
from .paths import expand

if TYPE_CHECKING:
    from ..runtime import Answer, Image, Picture, Qwen3VL, Video

DESCRIBE = "Describe this image."
Artifact = Annotated[
    Path, typer.Argument(parser=expand, metavar="ARTIFACT", help="An artifact directory, such as artifacts/tiny.")
]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum number of tokens of an answer.")]
Temperature = Annotated[
    float | None,
    typer.Option(metavar="T", min=0, help="0 is greedy, higher is more varied. [default: the checkpoint's]"),
]
TopK = Annotated[
    int | None,
    typer.Option(metavar="K", min=0, help="Sample from the K likeliest tokens; 0 is all. [default: the checkpoint's]"),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        min=0,
        max=1,
        help="Sample from the likeliest tokens that together have this probability. [default: the checkpoint's]",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        min=0,
        max=1,
        help="Sample from tokens at least P times as likely as the likeliest. [default: the checkpoint's]",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Above 1, tokens of prompt and answer become less likely. [default: the checkpoint's]"
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=-2,
        max=2,
        help="Above 0, tokens of the answer become less likely. [default: the checkpoint's]",
    ),
]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; can be repeated.")
]
MaxTime = Annotated[float | None, typer.Option(metavar="SECONDS", help="Time limit of an answer.")]
Seed = Annotated[int | None, typer.Option(metavar="N", min=0, help="Random seed, to repeat an answer.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads per operator. [default: chosen by onnxruntime]")
]
Precision = Annotated[
    str, typer.Option(metavar="NAME", help="One of the artifact's precisions, such as q4. [default: its main one]")
]
MinPixels = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Enlarge pictures to at least N pixels. [default: the checkpoint's]"),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Reduce pictures and frames to at most N pixels; a token is 32x32. [default: the checkpoint's]",
    ),
]
AllowPrivateUrls = Annotated[
    bool, typer.Option("--allow-private-urls", help="Also fetch URLs on this machine and its private network.")
]

EndLoops = Annotated[
    bool, typer.Option("--end-loops/--no-end-loops", help="End an answer that repeats itself without end.")
]
KeepSpecialTokens = Annotated[
    bool, typer.Option("--keep-special-tokens", help="Print the special tokens of the answer, such as <|box_start|>.")
]
PlainText = Annotated[
    bool,
    typer.Option("--plain-text", help="Read control tokens spelled in the question, such as <|im_end|>, as text."),
]
PromptLookup = Annotated[
    bool | None,
    typer.Option(
        "--prompt-lookup/--no-prompt-lookup",
        help="Draft what prompt or answer had before, and read several tokens in one call: the same answer sooner. "
        "[default: where it keeps the answer and may save time]",
    ),
]
ANSWER = (  # options of both commands that are settings of an answer
    "max_new_tokens",
    "stop",
    "max_time",
    "end_loops",
    "keep_special_tokens",
    "plain_text",
    "prompt_lookup",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "seed",
)


def run(
    context: typer.Context,
    artifact: Artifact,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", metavar="FILE", help="A picture: path or URL; can be repeated."),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option("--video", metavar="FILE", help="A video: path, URL, or a folder of frames; can be repeated."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The question; '-' reads it from standard input."),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            parser=expand,
            metavar="FILE",
            help="Write the picture to this file, with the answer's boxes and points drawn.",
        ),
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            parser=expand, metavar="FILE", help="JSON file of functions the model may call; calls are printed as JSON."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    max_time: MaxTime = None,
    end_loops: EndLoops = True,
    keep_special_tokens: KeepSpecialTokens = False,
    plain_text: PlainText = False,
    prompt_lookup: PromptLookup = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    allow_private_urls: AllowPrivateUrls = False,
    precision: Precision = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    provider_option: ProviderOption = None,
) -> None:
    """Ask one question, with or without pictures, and stream the answer.

    Example: `qwen3vl-export run artifacts/tiny --image cat.jpg --prompt "What is this?"`

    Example: `qwen3vl-export run ARTIFACT -i cat.jpg -p "Find the cat: bbox_2d in JSON." --draw out.png`
    """
    from ..chat.screen import reason_of_end
    from ..runtime import Image, UrlRules, Video
    from ..runtime.grounding import check_drawing, save_drawing
    from ..runtime.pictures.images import open_image
    from ..runtime.sampling import resolve

    images, videos = image or [], video or []
    if prompt is None and not images and not videos:
        raise InputError("there is no question", 'Add --prompt "What is 2+3?" or --image FILE')
    if draw is not None:
        check_drawing(draw, len(images))
    text = DESCRIBE if prompt is None else read_question() if prompt == "-" else prompt
    functions = None if tools is None else read_tools(tools)
    model = load(artifact, threads, allow_private_urls, precision, min_pixels, max_pixels, device, provider_option)
    settings = answer_settings(context)
    sampling = resolve(model.sampling, settings)
    if sampling.do_sample:
        say(f"the answer is drawn with {sampling}", stderr=True)
    rules = UrlRules(allow_private=allow_private_urls)
    pictures = [open_image(path, rules) for path in images]
    media: list[Image | Video] = [*map(Image, pictures), *map(Video, videos)]
    shown = [show_tokens(model, name, medium) for name, medium in zip(images + videos, media, strict=True)]
    content: list[Any] = [*shown, text]
    answer = model.stream(content, tools=functions, **{**settings, "seed": sampling.seed})
    print_answer(answer)
    if reason := reason_of_end(answer, model.facts.max_position_embeddings):
        say(reason, stderr=True)
    if draw is not None:
        count, refused = save_drawing(draw, pictures, answer.reply.content)
        say(f"{draw}: {count} drawn", stderr=True)
        for line in refused:
            say(f"not drawn: {line}", stderr=True)


def show_tokens(model: Qwen3VL, name: str, medium: Image | Video) -> Picture:
    """A picture or video ready for the model; how many tokens it takes is printed to standard error."""
    picture = model.picture(medium)
    say(f"{name}: {picture.tokens} tokens", stderr=True)
    return picture


def read_question() -> str:
    """The question on standard input.

    Raises:
        InputError: there is none, or the input is closed.
    """
    question = sys.stdin.read().strip()
    if not question:
        raise InputError("standard input holds no question", "Write it there, or pass --prompt TEXT")
    return question


def print_answer(answer: Answer) -> None:
    """Stream content to standard output and dimmed reasoning to standard error; then print each tool call as JSON.

    Raises:
        InputError: a tool call that cannot be parsed.
    """
    stderr = console(stderr=True)
    written, reasoning = False, ""
    for part in answer.parts():
        if part.kind == "reasoning":
            reasoning = part.text
            stderr.print(Text(neutralize(reasoning), "dim"), end="", soft_wrap=True)
        elif part.kind == "content":
            text = part.text if written or part.section == 0 else part.text.lstrip()
            if text and reasoning:
                stderr.print(end="" if reasoning.endswith("\n") else "\n")
                reasoning = ""
            written = written or bool(text)
            write(text)
    write("\n" if written or not answer.reply.tool_calls else "")
    for call in answer.reply.tool_calls:
        if call.error is not None:
            raise InputError(f"the model's tool call cannot be parsed ({call.error}): {call.text.strip()}", "Ask again")
        write_json({"name": call.name, "arguments": call.arguments})


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Read a JSON file with a list of functions in the format of the OpenAI API.

    Raises:
        InputError: the file cannot be read, or is not a list of objects.
    """
    try:
        tools = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})", "Pass a JSON file with a list of functions") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{path}: not a list of functions", 'Expected [{"type": "function", "function": {...}}]')
    return tools


def answer_settings(context: typer.Context) -> dict[str, Any]:
    """The settings of an answer, from a command's options; None for those that were not given."""
    return {name: context.params[name] for name in ANSWER}


def chat(
    context: typer.Context,
    artifact: Artifact,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    max_time: MaxTime = None,
    end_loops: EndLoops = True,
    keep_special_tokens: KeepSpecialTokens = False,
    plain_text: PlainText = False,
    prompt_lookup: PromptLookup = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    allow_private_urls: AllowPrivateUrls = False,
    precision: Precision = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    provider_option: ProviderOption = None,
) -> None:
    """Chat with a model on the terminal, about pictures and videos.

    Name pictures anywhere in a question, by path or URL. Ctrl-C stops an answer, not the chat; /help lists commands.

    Example: `qwen3vl-export chat artifacts/tiny`, then type `What is in cat.jpg?`
    """
    from ..chat import Chat
    from ..chat.screen import edit_lines, listen_to_ctrl_c, tolerate_bytes
    from .errors import ending

    model = load(artifact, threads, allow_private_urls, precision, min_pixels, max_pixels, device, provider_option)
    model.require_head(TEXT)
    session = Chat(model, console(), answer_settings(context), report=lambda error: ending(error, "chat")[1])
    edit_lines([*session.commands, "/quit"])
    listen_to_ctrl_c()
    tolerate_bytes()
    session.run()

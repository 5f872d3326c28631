"""The commands `run` and `chat`: an artifact answering on the terminal.

Knows the terminal; the answers come from `runtime`, which is imported when a command is called.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .console import complain, console
from .errors import InputError, Qwen3VLExportError

if TYPE_CHECKING:
    from .runtime import Answer, Image, Qwen3VL

DESCRIBE = "Describe this image."
HELP = """\
[bold]/image FILE[/]  show a picture with your next question; several are possible
[bold]/reset[/]       forget the conversation
[bold]/help[/]        show this
[bold]/quit[/]        leave, as Ctrl-D does
Ctrl-C stops an answer. Anything else is a question."""

Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact directory, such as artifacts/tiny.")]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Stop an answer after this many tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option(metavar="T", min=0, help="0 is greedy; higher is more varied. The checkpoint's unless said."),
]
TopK = Annotated[
    int | None, typer.Option(metavar="K", min=0, help="Draw from the K likeliest tokens; 0 is all of them.")
]
TopP = Annotated[
    float | None,
    typer.Option(metavar="P", min=0, max=1, help="Draw from the likeliest tokens that make up this probability."),
]
MinP = Annotated[
    float | None,
    typer.Option(metavar="P", min=0, max=1, help="Draw from tokens at least this fraction as likely as the likeliest."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(metavar="X", help="Above 1: tokens of prompt and answer become less likely.")
]
PresencePenalty = Annotated[
    float | None, typer.Option(metavar="X", min=-2, max=2, help="Above 0: tokens of the answer become less likely.")
]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; repeat it for several.")
]
MaxTime = Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop an answer after this time.")]
Seed = Annotated[int | None, typer.Option(metavar="N", min=0, help="The same seed draws the same answer.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads to use; onnxruntime's choice unless said.")
]
AllowPrivateUrls = Annotated[
    bool, typer.Option("--allow-private-urls", help="Also fetch pictures from this machine and its network.")
]

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "seed")


def run(
    context: typer.Context,
    artifact: Artifact,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", metavar="FILE", help="A picture, also by URL; repeat it for several."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The question; read from standard input if '-'."),
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    max_time: MaxTime = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    allow_private_urls: AllowPrivateUrls = False,
) -> None:
    """Ask one question, with or without pictures, and stream the answer.

    Example: `qwen3vl-export run artifacts/tiny --image cat.jpg --prompt "What is this?"`
    """
    from .runtime import Image, Qwen3VL, UrlRules

    images = image or []
    if prompt is None and not images:
        raise InputError("nothing was asked", 'Add --prompt "What is 2+3?" or --image FILE')
    text = DESCRIBE if prompt is None else sys.stdin.read().strip() if prompt == "-" else prompt
    model = Qwen3VL.load(artifact, threads, url_rules=UrlRules(allow_private=allow_private_urls))
    content = [*(Image(path) for path in images), text]
    for piece in model.stream(content, max_new_tokens, stop=stop, max_time=max_time, **sampling(context)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def sampling(context: typer.Context) -> dict[str, Any]:
    """The sampling options of a command; None where none was given."""
    return {name: context.params[name] for name in SAMPLING}


def chat(
    context: typer.Context,
    artifact: Artifact,
    max_new_tokens: MaxNewTokens = 512,
    stop: Stop = None,
    max_time: MaxTime = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    seed: Seed = None,
    threads: Threads = None,
    allow_private_urls: AllowPrivateUrls = False,
) -> None:
    """Talk with a model on the terminal: questions, pictures, streamed answers.

    Type /image FILE to show a picture, /reset to start over, /quit to leave. Ctrl-C stops an answer, not the chat.
    """
    from .runtime import Qwen3VL, UrlRules

    with suppress(ImportError):
        import readline  # noqa: F401 - gives the input line editing and a history

    screen = console()
    model = Qwen3VL.load(artifact, threads, url_rules=UrlRules(allow_private=allow_private_urls))
    screen.print(f"[bold]{escape(model.artifact.manifest.name)}[/]  [dim]/image FILE, /reset, /help, /quit[/]")
    settings = {"max_new_tokens": max_new_tokens, "stop": stop, "max_time": max_time, **sampling(context)}
    talk = Talk(model, screen, settings)
    while True:
        try:
            line = input("> ").strip()  # plain, so that readline knows how wide it is
        except KeyboardInterrupt:
            screen.print()
            continue
        except EOFError:
            screen.print()
            return
        if line == "/quit":
            return
        try:
            talk.take(line)
        except Qwen3VLExportError as error:
            complain(str(error))
        except KeyboardInterrupt:  # while a picture was read; an answer deals with it itself
            screen.print()


@dataclass
class Talk:
    """A conversation in progress: what was said, and the pictures waiting for the next question."""

    model: Qwen3VL
    screen: Console
    settings: dict[str, Any]  # for `Qwen3VL.stream`
    said: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[Image] = field(default_factory=list)

    def take(self, line: str) -> None:
        """One line the user typed: a command or a question."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if command == "/image":
            self.show(rest.strip())
        elif command == "/reset":
            self.said.clear()
            self.waiting.clear()
            self.screen.print("[dim]forgotten[/]")
        elif command == "/help":
            self.screen.print(HELP)
        elif command.startswith("/") and not Path(command).exists():
            raise InputError(f"{command}: no such command", "Type /help")
        else:
            self.ask(line)

    def show(self, name: str) -> None:
        """Open a picture now, so that a wrong name is told at once."""
        from .runtime import Image
        from .runtime.images import open_image

        if not name:
            raise InputError("/image needs a file", "Type /image FILE")
        picture = open_image(os.path.expanduser(name.strip("'\"")), self.model.preparer.url_rules)
        self.waiting.append(Image(picture))
        self.screen.print(f"[dim]{escape(name)}: {picture.width}x{picture.height}, ask about it[/]")

    def ask(self, question: str) -> None:
        """Stream an answer. What was said becomes part of the conversation, also if Ctrl-C cut it short."""
        turn: dict[str, Any] = {"role": "user", "content": [*self.waiting, question]}
        answer: Answer | None = None
        with suppress(KeyboardInterrupt):
            answer = self.model.stream([*self.said, turn], **self.settings)
            for piece in answer:
                self.screen.print(piece, end="", markup=False, soft_wrap=True)
        self.screen.print()
        if answer is None or not answer.text:
            return
        self.said += [turn, {"role": "assistant", "content": answer.text}]
        self.waiting.clear()
        rate = f", then {answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else ""
        self.screen.print(f"[dim]first token after {answer.first_token_seconds:.2f} s{rate}[/]")

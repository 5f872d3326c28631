"""A conversation on the terminal: questions, pictures, streamed answers, and the commands.

Knows what was said and shown. `line` reads a line, `screen` prints, `transcript` saves, `runtime`
answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from ..console import complain, visible
from ..errors import InputError, Qwen3VLExportError
from .line import Reference, is_url, name_of, read_line
from .screen import figures, print_parts
from .transcript import Shown, Turn, save

if TYPE_CHECKING:
    from ..runtime import Answer, Qwen3VL

HELP = """\
Ask anything. Name pictures and videos anywhere in a line, by path or URL: [bold]What is in cat.jpg?[/]
[bold]/image FILE[/]  show a picture with the next question; several are possible
[bold]/video FILE[/]  show a video, or a folder of frames
[bold]/paste[/]       show the picture in the clipboard
[bold]/draw FILE[/]   draw the boxes of the last answer on its picture
[bold]/save FILE[/]   write the conversation, as .md or .json
[bold]/reset[/]       forget the conversation
[bold]/help[/]        show this
[bold]/quit[/]        leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next."""


class Chat:
    """A conversation in progress.

    Args:
        settings: for `Qwen3VL.stream`.
    """

    def __init__(self, model: Qwen3VL, screen: Console, settings: dict[str, Any]) -> None:
        self.model = model
        self.screen = screen
        self.settings = settings
        self.turns: list[Turn] = []
        self.waiting: list[Shown] = []  # for the next question
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": self.show_image,
            "/video": self.show_video,
            "/paste": self.paste,
            "/draw": self.draw,
            "/save": self.save,
            "/reset": self.reset,
            "/help": self.help,
        }

    @property
    def name(self) -> str:
        return self.model.artifact.manifest.name

    def run(self) -> None:
        """Until /quit or the end of the input. What goes wrong in one turn is told, and the next can come."""
        self.screen.print(f"[bold]{escape(self.name)}[/]  [dim]name pictures anywhere in a question; /help, /quit[/]")
        while True:
            try:
                line = self.read()
            except KeyboardInterrupt:
                self.screen.print("\n[dim]/quit or Ctrl-D leaves[/]")
                continue
            except EOFError:
                self.screen.print()
                return
            if line == "/quit":
                return
            try:
                self.take(line)
            except Qwen3VLExportError as error:
                complain(str(error))
            except KeyboardInterrupt:  # while a picture was read; an answer deals with it itself
                self.screen.print()

    def read(self) -> str:
        """A line, or several if they end in a backslash. The prompt is plain, so that readline knows how wide it is."""
        names = visible(" ".join(item.name for item in self.waiting))
        line = input(f"{names} > " if names else "> ")
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{input('… ')}"
        return line.strip()

    def take(self, line: str) -> None:
        """One line: a command or a question."""
        command, _, rest = line.partition(" ")
        if command in self.commands:
            self.commands[command](rest.strip())
        elif command.startswith("/") and "/" not in command[1:] and not os.path.exists(command):
            raise InputError(f"{command}: no such command", "Type /help")
        elif line:
            self.hear(line)

    def hear(self, line: str) -> None:
        """A question, or pictures for the next one."""
        said = read_line(line)
        for name in said.missing:
            self.screen.print(f"[dim]{escape(name)}: no such file here, read as a word[/]")
        shown = [self.open(reference) for reference in said.references]
        if said.text:
            self.ask(said.text, shown)
        else:
            self.waiting += shown

    def open(self, reference: Reference) -> Shown:
        """Open a picture now, so that a wrong name is told at once."""
        if reference.is_video:
            return self.open_video(reference.source, reference.name)
        return self.open_image(reference.source, reference.name)

    def open_image(self, source: Any, name: str) -> Shown:
        from ..runtime import Image
        from ..runtime.images import open_image

        image = open_image(source, self.model.preparer.url_rules)
        self.screen.print(f"[dim]{escape(name)}: {image.width}x{image.height}[/]")
        return Shown(name, absolute(source, name), self.model.picture(Image(image)), image)

    def open_video(self, source: str, name: str) -> Shown:
        from ..runtime import Video

        picture = self.model.picture(Video(source))
        seconds = picture.text.rpartition(" seconds>")[0].rpartition("<")[2]
        self.screen.print(f"[dim]{escape(name)}: {seconds} seconds, {picture.grid[0]} pairs of frames[/]")
        return Shown(name, absolute(source, name), picture, None)

    # Commands.

    def show_image(self, rest: str) -> None:
        path = file_named(rest, "/image")
        self.waiting.append(self.open_image(path, name_of(path)))

    def show_video(self, rest: str) -> None:
        path = file_named(rest, "/video")
        self.waiting.append(self.open_video(path, name_of(path)))

    def paste(self, rest: str) -> None:
        import PIL.Image
        import PIL.ImageGrab

        try:
            found = PIL.ImageGrab.grabclipboard()
        except (NotImplementedError, OSError) as error:
            raise InputError(f"the clipboard cannot be read ({error})", "Save the picture and name the file") from error
        if isinstance(found, list):
            self.waiting += [self.open_image(path, name_of(path)) for path in found]
        elif isinstance(found, PIL.Image.Image):
            self.waiting.append(self.open_image(found, "clipboard"))
        else:
            raise InputError("the clipboard holds no picture", "Copy one, or name a file")

    def draw(self, rest: str) -> None:
        from ..runtime.grounding import save_drawing

        if not self.turns:
            raise InputError("/draw: nothing was answered yet", "Ask where something is")
        images = [item.image for turn in self.turns for item in turn.shown if item.image is not None]
        path = Path(file_named(rest, "/draw"))
        count = save_drawing(path, images[-1:], self.turns[-1].answer.reply.content)
        self.screen.print(f"[dim]{escape(str(path))}: {count} drawn[/]")

    def save(self, rest: str) -> None:
        path = Path(file_named(rest, "/save"))
        save(path, self.name, self.turns)
        self.screen.print(f"[dim]{escape(str(path))}: {len(self.turns)} questions and answers[/]")

    def reset(self, rest: str) -> None:
        self.turns.clear()
        self.waiting.clear()
        self.screen.print("[dim]forgotten[/]")

    def help(self, rest: str) -> None:
        self.screen.print(HELP)

    # Answers.

    def ask(self, question: str, shown: list[Shown]) -> None:
        """Stream an answer. What was said becomes part of the conversation, also if Ctrl-C cut it short.

        If it fails, the conversation is as before, and pictures that waited for it are let go: one of them may be why.
        """
        shown, self.waiting = [*self.waiting, *shown], []
        asked = {"role": "user", "content": [*(item.picture for item in shown), question]}
        said = [message for turn in self.turns for message in turn.messages()]
        answer: Answer | None = None
        stopped = False
        try:
            with self.busy() as ready:
                answer = self.model.stream([*said, asked], **self.settings)
                print_parts(answer.parts(), self.screen, ready)
        except KeyboardInterrupt:
            stopped = True
        except Qwen3VLExportError:
            if shown:
                self.screen.print(f"[dim]{escape(', '.join(item.name for item in shown))}: put aside[/]")
            raise
        self.screen.print()
        if answer is None or not answer.text:
            self.waiting = shown
            return
        self.turns.append(Turn(tuple(shown), question, answer, stopped))
        self.screen.print(f"[dim]{escape(figures(answer, stopped, self.model.facts.max_position_embeddings))}[/]")

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """A spinner until what is given out is called."""
        if not self.screen.is_terminal:
            yield lambda: None
            return
        with self.screen.status("[dim]reading[/]", spinner="dots") as status:
            yield status.stop


def file_named(rest: str, command: str) -> str:
    """The argument of a command: quotes taken off, `~` resolved."""
    if not rest:
        raise InputError(f"{command} needs a file", f"Type {command} FILE")
    return os.path.expanduser(rest.strip("'\"").replace("\\ ", " "))


def absolute(source: Any, name: str) -> str:
    """Where a picture is, from anywhere; its name if it is nowhere."""
    if not isinstance(source, str):
        return name
    return source if is_url(source) else os.path.abspath(source)

"""A conversation on the terminal: questions, pictures, streamed answers, and commands.

Knows the conversation so far. `line` parses a line, `screen` prints, `transcript` saves, `runtime` answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..console import Terminal, one_line, print_error
from ..errors import InputError, Qwen3VLExportError, first_line
from .line import Reference, base_name, is_url, parse_line
from .screen import format_figures, print_parts
from .transcript import Attachment, Turn, save

if TYPE_CHECKING:
    from ..runtime import Answer, Qwen3VL, Sampling

HELP = """\
Ask anything. Name pictures and videos anywhere in a line, by path or URL: [bold]What is in cat.jpg?[/]
[bold]/image FILE[/]  attach a picture to the next question; can be repeated
[bold]/video FILE[/]  attach a video, or a folder of frames
[bold]/paste[/]       attach the picture in the clipboard
[bold]/draw FILE[/]   draw the boxes of the last answer on its picture and write that to FILE
[bold]/save FILE[/]   write the conversation, as .md or .json
[bold]/reset[/]       forget the conversation
[bold]/help[/]        show this help
[bold]/quit[/]        leave, like Ctrl-D
Ctrl-C stops an answer. End a line with \\ to continue it on the next."""


def name_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class Chat:
    """A conversation in progress. Only a question that was answered becomes part of it.

    Args:
        settings: passed to `Qwen3VL.stream`. Answers that are drawn have a seed: the first that of the settings or a
            new one, and each further answer of a conversation the next number.
        report: what to print about an error that nobody foresaw.
    """

    def __init__(
        self,
        model: Qwen3VL,
        screen: Terminal,
        settings: dict[str, Any],
        report: Callable[[BaseException], str] = name_error,
    ) -> None:
        self.model = model
        self.screen = screen
        self.settings = settings
        self.report = report
        self.sampling = self.choose_sampling()
        self.turns: list[Turn] = []
        self.pending: list[Attachment] = []  # for the next question
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": self.attach_image,
            "/video": self.attach_video,
            "/paste": self.paste,
            "/draw": self.draw,
            "/save": self.save,
            "/reset": self.reset,
            "/help": self.help,
        }

    @property
    def name(self) -> str:
        return self.model.artifact.manifest.name

    def choose_sampling(self) -> Sampling:
        """How the conversation's answers are chosen."""
        from ..runtime.sampling import resolve

        return resolve(self.model.sampling, self.settings)

    def run(self) -> None:
        """Read and answer until /quit or the end of the input. An error ends only its turn."""
        hint = "name pictures anywhere in a question; /help, /quit"
        if self.sampling.do_sample:
            hint = f"answers are drawn with {self.sampling}; {hint}"
        self.screen.print(f"[bold]{escape(self.name)}[/]  [dim]{escape(hint)}[/]", soft_wrap=True)
        while True:
            try:
                line = self.read()
            except KeyboardInterrupt:
                self.screen.print("\n[dim]leave with /quit or Ctrl-D[/]")
                continue
            except EOFError:
                self.screen.print()
                return
            if line == "/quit":
                return
            try:
                self.handle(line)
            except Qwen3VLExportError as error:
                print_error(str(error))
            except KeyboardInterrupt:  # while reading a picture; `ask` handles it during an answer
                self.screen.print()
            except BrokenPipeError:  # nobody reads the answers any more
                raise
            except Exception as error:  # a bug, or a machine out of memory: the conversation is worth more
                print_error(f"{self.report(error).rstrip('.')}. The conversation is as before")

    def read(self) -> str:
        """A line, with its continuation lines. The prompt has no colours, so that readline knows its width."""
        names = one_line(" ".join(item.name for item in self.pending))
        line = input(f"{names} > " if names else "> ")
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{input('… ')}"
        return line.strip()

    def handle(self, line: str) -> None:
        """Handle one line: a command or a question."""
        command, _, rest = line.partition(" ")
        if command in self.commands:
            self.commands[command](rest.strip())
        elif command.startswith("/") and "/" not in command[1:] and not os.path.exists(command):
            raise InputError(f"{command}: no such command", "Type /help")
        elif line:
            self.handle_question(line)

    def handle_question(self, line: str) -> None:
        """Answer a question, or keep pictures for the next one."""
        parsed = parse_line(line)
        for name in parsed.missing:
            self.screen.print(f"[dim]{escape(name)}: no such file here, read as a word[/]")
        attachments = [self.open(reference) for reference in parsed.references]
        if parsed.text:
            self.ask(parsed.text, attachments)
        else:
            self.pending += attachments

    def open(self, reference: Reference) -> Attachment:
        """Open a picture or video now, so that a wrong name is reported before the question is asked."""
        if reference.is_video:
            return self.open_video(reference.source, reference.name)
        return self.open_image(reference.source, reference.name)

    def open_image(self, source: Any, name: str) -> Attachment:
        from ..runtime import Image
        from ..runtime.pictures.images import open_image

        image = open_image(source, self.model.preparer.url_rules)
        picture = self.model.picture(Image(image))
        self.screen.print(f"[dim]{escape(name)}: {image.width}x{image.height}, {picture.tokens} tokens[/]")
        return Attachment(name, absolute_source(source, name), picture, image)

    def open_video(self, source: str, name: str) -> Attachment:
        from ..runtime import Video

        picture = self.model.picture(Video(source))
        seconds = picture.text.rpartition(" seconds>")[0].rpartition("<")[2]
        self.screen.print(
            f"[dim]{escape(name)}: {seconds} seconds, {picture.grid[0]} pairs of frames, {picture.tokens} tokens[/]"
        )
        return Attachment(name, absolute_source(source, name), picture, None)

    # Commands.

    def attach_image(self, rest: str) -> None:
        path = parse_file(rest, "/image")
        self.pending.append(self.open_image(path, base_name(path)))

    def attach_video(self, rest: str) -> None:
        path = parse_file(rest, "/video")
        self.pending.append(self.open_video(path, base_name(path)))

    def paste(self, rest: str) -> None:
        import PIL.Image
        import PIL.ImageGrab

        try:
            content = PIL.ImageGrab.grabclipboard()
        except (NotImplementedError, OSError) as error:
            raise InputError(f"the clipboard cannot be read ({error})", "Save the picture and name the file") from error
        if isinstance(content, list):
            self.pending += [self.open_image(path, base_name(path)) for path in content]
        elif isinstance(content, PIL.Image.Image):
            self.pending.append(self.open_image(content, "clipboard"))
        else:
            raise InputError("the clipboard contains no picture", "Copy one, or name a file")

    def draw(self, rest: str) -> None:
        from ..runtime.grounding import save_drawing

        if not self.turns:
            raise InputError("/draw: there is no answer yet", "Ask where something is")
        images = [item.image for turn in self.turns for item in turn.attachments if item.image is not None]
        path = Path(parse_file(rest, "/draw"))
        count, refused = save_drawing(path, images[-1:], self.turns[-1].answer.reply.content)
        self.screen.print(f"[dim]{escape(str(path))}: {count} drawn[/]")
        for reason in refused:
            self.screen.print(f"[dim]not drawn: {escape(reason)}[/]")

    def save(self, rest: str) -> None:
        path = Path(parse_file(rest, "/save"))
        save(path, self.name, self.turns)
        self.screen.print(f"[dim]{escape(str(path))}: {len(self.turns)} questions and answers[/]")

    def reset(self, rest: str) -> None:
        self.turns.clear()
        self.pending.clear()
        self.sampling = self.choose_sampling()
        seed = f"; seed {self.sampling.seed}" if self.sampling.do_sample else ""
        self.screen.print(f"[dim]forgotten{seed}[/]")

    def help(self, rest: str) -> None:
        self.screen.print(HELP)

    # Answers.

    def ask(self, question: str, attachments: list[Attachment]) -> None:
        """Stream an answer and add the turn to the conversation, also if Ctrl-C cuts the answer short.

        If it fails, in whatever way, the conversation is unchanged and pending pictures are dropped: one of them may be
        the cause.
        """
        attachments, self.pending = [*self.pending, *attachments], []
        message = {"role": "user", "content": [*(item.picture for item in attachments), question]}
        history = [earlier for turn in self.turns for earlier in turn.messages()]
        answer: Answer | None = None
        stopped = False
        try:
            with self.spinner() as stop_spinner:
                answer = self.model.stream([*history, message], **self.settings_of_turn())
                print_parts(answer.parts(), self.screen, stop_spinner)
        except KeyboardInterrupt:
            stopped = True
        except Exception:
            if answer is not None and answer.text:
                self.screen.print()
            if attachments:
                self.screen.print(f"[dim]{escape(', '.join(item.name for item in attachments))}: dropped[/]")
            raise
        finally:
            if answer is not None:
                answer.close()
        self.screen.print()
        if answer is None or not answer.text:
            self.pending = attachments
            return
        context = self.model.facts.max_position_embeddings
        self.screen.print(f"[dim]{escape(format_figures(answer, stopped, context))}[/]")
        turn = Turn(tuple(attachments), question, answer, stopped)
        self.check_answer([*history, *turn.messages()])
        self.turns.append(turn)

    def check_answer(self, messages: list[dict[str, Any]]) -> None:
        """Raise an `InputError` if no further question could be asked after these messages.

        A model can spell the token of a picture, or write half of a surrogate pair into a tool call.
        """
        try:
            self.model.prepare([messages], bool(self.settings.get("plain_text")))
        except InputError as error:
            raise InputError(f"this answer cannot be part of the conversation: {error.what}", error.next) from error

    def settings_of_turn(self) -> dict[str, Any]:
        """Settings of the next answer."""
        seed = self.sampling.seed
        return self.settings if seed is None else {**self.settings, "seed": seed + len(self.turns)}

    @contextmanager
    def spinner(self) -> Iterator[Callable[[], None]]:
        """Show a spinner until the yielded function is called."""
        if not self.screen.is_terminal:
            yield lambda: None
            return
        with self.screen.status("[dim]reading[/]", spinner="dots") as status:
            yield status.stop


def parse_file(rest: str, command: str) -> str:
    """The file argument of a command, without quotes and with `~` expanded."""
    if not rest:
        raise InputError(f"{command} needs a file", f"Type {command} FILE")
    return os.path.expanduser(rest.strip("'\"").replace("\\ ", " "))


def absolute_source(source: Any, name: str) -> str:
    """The URL or absolute path of a picture; its name if it has neither."""
    if not isinstance(source, str):
        return name
    return source if is_url(source) else os.path.abspath(source)

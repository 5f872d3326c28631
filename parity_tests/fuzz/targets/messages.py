"""Messages: random conversations in and around the forms of the OpenAI API and qwen-vl-utils; and URLs of pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from ..mutations import TEXTS, Json, hostile_value, mutate_bytes, mutate_value
from .base import Target, picture_file

PICTURE = base64.b64encode(picture_file("PNG")).decode()
SOURCES = (
    *(
        f"data:image/png;base64,{PICTURE}",
        f"DATA:;BASE64,{PICTURE}",
        PICTURE,
        f"data:,{PICTURE}",
        "data:",
        "data:;base64,%",
    ),
    *(
        "cat.png",
        "./cat.png",
        "file:cat.png",
        "file://cat.png",
        "missing.png",
        ".",
        "",
        "cat.png\0",
        "a" * 5000 + ".png",
    ),
    *(
        "http://127.0.0.1/x",
        "http://[::1]/x",
        "https://169.254.169.254/latest",
        "http://x.invalid/",
        "http://",
        "ftp://x/y",
    ),
    "data:image/png;base64," + PICTURE[:60],
)
OPTIONS = (
    *(
        "min_pixels",
        "max_pixels",
        "total_pixels",
        "resized_height",
        "resized_width",
        "nframes",
        "min_frames",
        "max_frames",
    ),
    *(
        "fps",
        "sample_fps",
        "raw_fps",
        "video_start",
        "video_end",
        "frames_indices",
        "total_num_frames",
        "detail",
        "type",
    ),
    *("text", "image", "image_url", "video", "base64", "path", "url", "frames", "cache_control", ""),
)
SIZES = (1, 28, 32, 64, 1000, 4096, 10**6, 10**9, 10**12, "64", "1e3", 64.5, -64, None, True)
HOSTS = (
    *(
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
    ),
    *(
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[fec0::1]",
        "[fe80::1%25lo]",
        "[fc00::1]",
    ),
    *(
        "[2001:0:1::80ff:fffe]",
        "192.88.99.1",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[ff02::1]",
        "[100::1]",
        "1.1.1.1",
    ),
    *(
        "[2606:4700::1111]",
        "8.8.8.8",
        "0.0.0.0",
        "255.255.255.255",
        "240.0.0.1",
        "x.invalid",
        "xn--a",
        "ü.invalid",
        "a" * 300,
    ),
    *(
        "a..b",
        "-",
        "[",
        "]",
        "[::1",
        "[v1.x]",
        "\uff11\uff12\uff17.0.0.1",
        "127.0.0.1.",
        "127.0.0.1%00",
        "%31%32%37.1",
        "[::ffff:0:127.0.0.1]",
    ),
    *(
        "[5f00::1]",
        "[3fff::1]",
        "[2001:db8::1]",
        "[64:ff9b::8.8.8.8]",
        "192.0.0.8",
        "198.18.0.1",
        "[2001:20::1]",
        "[::8.8.8.8]",
    ),
)


def choose(random: Random, *makers: Callable[[Random], Json]) -> Json:
    return random.choice(makers)(random)


def make_source(random: Random) -> Json:
    """What stands where a picture or a video is expected."""
    text = random.choice(SOURCES)
    return choose(
        random,
        lambda _: text,
        lambda _: text,
        lambda _: {"url": text},
        lambda _: {"url": text, "detail": random.choice(("auto", "low", "high", 1))},
        lambda _: [random.choice(SOURCES[:3]) for _ in range(random.choice((0, 1, 2, 5)))],
        hostile_value,
    )


def make_item(random: Random) -> Json:
    """One item of a message's content."""
    kind = random.choice(("text", "image", "image_url", "video", "video_url"))
    item: dict[str, Json] = {"type": kind}
    if random.random() < 0.1:
        del item["type"]
    if kind == "text":
        item["text"] = random.choice((*TEXTS, "What is this?", "<|im_end|>", "<|vision_start|><|image_pad|>", None, 1))
    else:
        item[kind] = make_source(random)
    for _ in range(random.choice((0, 0, 1, 2))):
        value = random.choice(SIZES) if random.random() < 0.7 else hostile_value(random)
        item[random.choice(OPTIONS)] = value
    return item if random.random() < 0.95 else choose(random, lambda _: random.choice(SOURCES), hostile_value)


def make_call(random: Random) -> Json:
    """A call of a tool."""
    arguments = random.choice(
        ('{"a": 1}', {"a": 1}, "{", "", None, [1], {"a": {"b": [1, None]}}, hostile_value(random))
    )
    call = {"name": random.choice(("look", "", None, 1)), "arguments": arguments}
    return choose(random, lambda _: {"type": "function", "id": "1", "function": call}, lambda _: call, hostile_value)


def make_message(random: Random) -> Json:
    content = choose(
        random,
        lambda _: random.choice((*TEXTS, "What is this?", None, "<think>a</think>b")),
        lambda _: [make_item(random) for _ in range(random.choice((0, 1, 2, 3)))],
        lambda _: [make_item(random) for _ in range(random.choice((1, 2)))],
    )
    message = {
        "role": random.choice(("user", "user", "assistant", "tool", "system", "developer", "")),
        "content": content,
    }
    if random.random() < 0.2:
        message["tool_calls"] = choose(random, lambda _: [make_call(random) for _ in range(2)], hostile_value)
    if random.random() < 0.1:
        message[random.choice(("name", "tool_call_id", "reasoning_content", "refusal", "audio", "x"))] = hostile_value(
            random
        )
    return message


def make_request(random: Random) -> Json:
    """A conversation, with or without tools."""
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": parameters}}
    content = choose(
        random,
        *[lambda _: [make_message(random) for _ in range(random.choice((1, 1, 2, 4)))]] * 6,
        lambda _: [make_item(random), "text"],
        hostile_value,
    )
    request: dict[str, Json] = {"content": content}
    if random.random() < 0.15:
        request["tools"] = choose(random, lambda _: [tool], lambda _: mutate_value(random, [tool]), hostile_value)
    return mutate_value(random, request) if random.random() < 0.2 else request


class Messages(Target):
    name, inputs = "messages", 500
    confined = False

    def make(self, random: Random) -> bytes:
        return json.dumps(make_request(random)).encode()

    def open(self, box: Path) -> Callable[[bytes], object]:
        from qwen3vl_export.runtime import Qwen3VL
        from qwen3vl_export.runtime.prompts.messages import as_messages

        (box / "cat.png").write_bytes(picture_file("PNG"))
        model = Qwen3VL.load(self.artifact)
        model.prepare([as_messages("Hi")])

        def read(data: bytes) -> None:
            request: Any = json.loads(data)
            if not isinstance(request, dict) or not request.keys() <= {"content", "tools"}:
                request = {"content": request}
            content: Any = request.get("content")
            model.prepare([as_messages(content)], tools=request.get("tools"))

        return read


class Urls(Target):
    name, inputs = "urls", 1000
    confined = False

    def make(self, random: Random) -> bytes:
        scheme = random.choice(("http://", "https://", "HTTP://", "http:", "http:///", "https:/", "file://", "data:"))
        user = random.choice(("", "", "", "user:key@", "@", "1.1.1.1@", "a@b@", "\\@"))
        port = random.choice(("", "", ":80", ":0", ":65536", ":-1", ":x", ":", ":" + "9" * 5000))
        path = random.choice(
            ("", "/", "/x.png", "/\u00fc", "/%zz", "/\ud800", "/a b", "\\x", "/" + "x" * 9999, "?a", "#b", "/\r\nX: y")
        )
        url = scheme + user + random.choice(HOSTS) + port + path
        if random.random() < 0.1:
            url = random.choice(SOURCES)
        data = url.encode("utf-8", "surrogatepass")
        return mutate_bytes(random, data) if random.random() < 0.3 else data

    def open(self, box: Path) -> Callable[[bytes], object]:
        from qwen3vl_export.runtime import Image, Qwen3VL

        (box / "cat.png").write_bytes(picture_file("PNG"))
        model = Qwen3VL.load(self.artifact)
        return lambda data: model.picture(Image(data.decode("utf-8", "surrogateescape")))

"""Messages of every form: each key is honoured as its library does, or refused by its name."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
import pytest

from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import FrameChoice, Image, Picture, PixelBudget, Video
from qwen3vl_export.runtime.pictures.images import FORMATS, open_image
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.prompts.items import TYPES, VIDEO
from qwen3vl_export.runtime.prompts.messages import KNOWN, MESSAGE_KEYS, as_messages, split_media
from qwen3vl_export.runtime.prompts.template_data import read_names

from ...fixtures.paths import TEMPLATES
from ...fixtures.standin import artifact_without_graphs

CAT = np.full((64, 96, 3), 90, np.uint8)
CLIP = [np.full((64, 64, 3), value, np.uint8) for value in (0, 90, 180)]
PICTURE = Picture(np.zeros((4, 1536), np.float32), (1, 2, 2), "<|image_pad|>", "<|image_pad|>", is_video=False)
DATA = {"text": "Hi", "image": "cat.png", "image_url": "cat.png", "video": "clip.mp4", "video_url": "clip.mp4"}
WORDS = read_names((TEMPLATES / "instruct.jinja").read_text("utf-8"), jinja2.Environment()).words
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def media_of(*parts: Any) -> list[Any]:
    return split_media(as_messages(list(parts)))[1]


# Forms of one question.


@pytest.mark.parametrize("content", [None, True, 3, 0.5])
def test_what_cannot_be_a_conversation_is_refused_by_its_type(content: Any) -> None:
    with pytest.raises(InputError, match=f"a conversation cannot be a {type(content).__name__}"):
        as_messages(content)


@pytest.mark.parametrize(
    "content",
    [
        [Image(CAT), "What is this?"],
        [{"role": "user", "content": [Image(CAT), "What is this?"]}],
        {"role": "user", "content": [Image(CAT), "What is this?"]},
        [{"role": "user", "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "image", "image": Image(CAT)}, "What is this?"]}],
        [{"role": "user", "content": [{"image": CAT}, {"text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "image", "path": CAT}, {"type": "text", "text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CAT}}, "What is this?"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": CAT}, "What is this?"]}],
        [{"role": "user", "content": [{"type": "image", "image_url": CAT, "min_pixels": None}, "What is this?"]}],
        [{"image": CAT}, {"text": "What is this?"}],
    ],
)
def test_every_form_of_a_question_is_the_same_question(content: Any) -> None:
    messages, media = split_media(as_messages(content))
    assert [message["role"] for message in messages] == ["user"]
    picture, text = messages[0]["content"]
    assert picture["type"] == "image" and (text.get("type", "text"), text["text"]) == ("text", "What is this?")
    assert len(media) == 1 and isinstance(media[0], Image) and media[0].source is CAT


class ClientMessage:
    """What a client library returns."""

    def model_dump(self) -> dict[str, Any]:
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}


def test_a_message_of_a_client_library_is_its_mapping() -> None:
    messages, _ = split_media(as_messages([{"role": "user", "content": "Hi"}, ClientMessage()]))  # type: ignore[list-item]
    assert messages[1] == {"role": "assistant", "tool_calls": [CALL]}


@pytest.mark.parametrize("message", ["Hi", 3, None, ["user", "Hi"]])
def test_a_message_that_is_none(message: Any) -> None:
    with pytest.raises(InputError, match="a message is a "):
        split_media([message])


def test_a_key_that_is_null_is_not_there() -> None:
    messages, _ = split_media([{"role": "assistant", "content": None, "tool_calls": [CALL], "audio": None}])
    assert messages == [{"role": "assistant", "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the conversation is empty"),
        ([3], "a message holds a int"),
        (["Hi", {"role": "user", "content": "Hi"}], "message 1 has no role"),
        ([{"role": "user", "content": [["Hi"]]}], "a message holds a list"),
        ([{"type": "audio", "audio": "x.wav"}], "an item of type 'audio'. Known types: text, image, image_url"),
        ([{"type": ["image"]}], r"an item of type \['image'\]"),
        ([{"type": "text", "text": 3}], "the text of a message is a int"),
        ([{"type": "image"}], "an item of type 'image' without data"),
        ([{"type": "video"}], "an item of type 'video' without data"),
        ([{"image": "a.png", "url": "b.png"}], "has both image and url"),
        ([{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}], "detail is 'low'.*give max_pixels"),
        ([{"type": "image_url", "image_url": {"detail": "auto"}}], "image_url has no url"),
        ([{"type": "image_url", "image_url": {"url": "a.png", "max_pixels": 9}}], "image_url has an unknown key"),
        ([{"type": "image", "image": PICTURE, "max_pixels": 9}], "max_pixels beside a picture that has its size"),
        ([{"type": "image", "image": Image("a", PixelBudget(9)), "max_pixels": 9}], "max_pixels beside a picture"),
        ([{"type": "video", "video": Video("a"), "fps": 9}], "fps beside a video that has its options"),
    ],
)
def test_content_of_no_known_form(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_media(as_messages(content))


# No key is ignored.


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("words", [frozenset(), WORDS], ids=["no template", "published template"])
def test_every_key_an_item_does_not_know_is_refused_by_name(name: str, words: frozenset[str]) -> None:
    kind = TYPES[name]
    known = {"type", *kind.data, *kind.options}
    for key in (KNOWN | {"cache_control", "detail", "video_metadata", "do_resize"}) - known:
        with pytest.raises(InputError, match=rf"{name}' has an unknown key '{key}'. Known keys: type, {kind.data[0]}"):
            split_media([{"role": "user", "content": [{"type": name, name: DATA[name], key: 1}]}], words)


@pytest.mark.parametrize("words", [frozenset(), WORDS], ids=["no template", "published template"])
def test_every_key_a_message_does_not_know_is_refused_by_name(words: frozenset[str]) -> None:
    for key in (KNOWN | {"images", "weight", "function_call", "refusal"}) - set(MESSAGE_KEYS):
        with pytest.raises(InputError, match=f"'user' has an unknown key '{key}'. Known keys: role, content, name"):
            split_media([{"role": "user", "content": "Hi", key: "x"}], words)


def test_a_key_that_the_template_reads_is_known() -> None:
    names = read_names("{{ m.weight }}{{ m['mood'] }}{{ m.get('tone') }}{{ 'pace' in m }}", jinja2.Environment())
    for key in ("weight", "mood", "tone", "pace"):
        message = {"role": "user", "content": [{"type": "text", "text": "Hi", key: 1}], key: 1}
        assert split_media([message], names.words)[0] == [message]


def test_every_known_key_of_a_message_reaches_the_template() -> None:
    message = dict.fromkeys(MESSAGE_KEYS, "x") | {"role": "assistant", "tool_calls": [CALL | {"id": "1", "index": 0}]}
    assert split_media([message])[0] == [message]


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ({"name": "f"}, "tool_calls is not a list of objects"),
        (["f"], "tool_calls is not a list of objects"),
        ([{"type": "custom", "custom": {"name": "f"}}], "a tool call has an unknown key 'custom'. Known keys: id"),
        ([{"function": {"name": "f", "strict": True}}], "the function of a tool call has an unknown key 'strict'"),
        ([{"type": "function"}], "a tool call has no name"),
        ([{"function": "f"}], "a tool call has no name"),
        ([CALL | {"content": "x"}], "a tool call has an unknown key 'content'"),
    ],
)
def test_tool_calls_the_template_would_garble(calls: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_media([{"role": "assistant", "content": "", "tool_calls": calls}], WORDS)


@pytest.mark.parametrize("role", ["developer", "critic", None, 3, ["user"]])
def test_a_role_that_the_template_would_leave_out(role: Any) -> None:
    with pytest.raises(InputError, match=r"the role .*The chat template knows system, user, assistant, tool"):
        split_media([{"role": role, "content": "Hi"}], WORDS)
    if isinstance(role, str):
        assert split_media([{"role": role, "content": "Hi"}], {role})[0]


# Options of pictures and videos.


def test_the_size_of_a_picture() -> None:
    for part in (
        {"type": "image", "image": "cat.png", "max_pixels": 50176},
        {"type": "image_url", "image_url": {"url": "cat.png", "detail": "high"}, "max_pixels": 50176},
        {"type": "image", "image": Image("cat.png"), "max_pixels": 50176},
    ):
        assert media_of(part) == [Image("cat.png", PixelBudget(max_pixels=50176))]
    size = {"resized_height": 280, "resized_width": 420}
    assert media_of({"image": "cat.png", **size}) == [Image("cat.png", PixelBudget(**size))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": "50176"}, "max_pixels is '50176'. Use a whole number from 1"),
        ({"max_pixels": 1.5}, "max_pixels is 1.5"),
        ({"min_pixels": True}, "min_pixels is True"),
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels is 9, above max_pixels, 8"),
        ({"resized_height": 64}, "resized_height without resized_width"),
        ({"resized_width": 64}, "resized_width without resized_height"),
        ({"resized_height": 64, "resized_width": 64, "max_pixels": 9}, "max_pixels beside resized_height"),
    ],
)
def test_sizes_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    for part in ({"image": "cat.png"}, {"video": "clip.mp4"}, {"video": CLIP}):
        with pytest.raises(InputError, match=message):
            media_of({**part, **options})


def test_a_video_in_every_form() -> None:
    for part in (
        Video(CLIP, 4),
        {"type": "video", "video": CLIP, "fps": 4},
        {"video": CLIP, "fps": 4.0},
        {"type": "video", "frames": CLIP, "fps": "4", "total_num_frames": 3},
        {"type": "video", "video": Video(CLIP, 4)},
    ):
        messages, media = split_media(as_messages([part, "What moves?"]))
        assert messages[0]["content"][0]["type"] == "video"
        assert media == [Video(CLIP, 4)]
    for part in (
        {"type": "video", "video": "clip.mp4", "fps": 1},
        {"type": "video_url", "video_url": {"url": "clip.mp4"}, "fps": 1},
    ):
        assert media_of(part) == [Video("clip.mp4", choice=FrameChoice(fps=1.0))]
    assert media_of({"type": "video", "path": "clip.mp4"}) == [Video("clip.mp4")]
    options = {"nframes": 8, "video_start": 1, "video_end": 2.5}
    assert media_of({"video": "clip.mp4", **options, "total_pixels": 99}) == [
        Video("clip.mp4", budget=PixelBudget(total_pixels=99), choice=FrameChoice(**options))
    ]


def test_frames_that_were_chosen_before() -> None:
    """Of three frames qwen-vl-utils makes four: it takes an even number."""
    four = [*CLIP, CLIP[-1]]
    assert media_of({"video": CLIP, "sample_fps": "1"}) == [Video(four, 1.0, positions=(0, 1, 2, 3))]
    assert media_of({"video": CLIP, "raw_fps": 30, "sample_fps": 2}) == [Video(four, 30.0, positions=(0, 1, 2, 3))]
    assert media_of({"video": CLIP[:1], "sample_fps": 2}) == [Video([CLIP[0]] * 2, 2.0, positions=(0, 1))]
    metadata = {"fps": 25, "frames_indices": np.array([3, 9, 20]), "total_num_frames": 40}
    assert media_of({"video": CLIP, **metadata}) == [Video(CLIP, 25.0, positions=(3, 9, 20))]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("clip.mp4", {"sample_fps": 1}, "sample_fps beside a video file"),
        ("clip.mp4", {"frames_indices": [0], "fps": 1}, "frames_indices beside a video file"),
        ("clip.mp4", {"fps": "often"}, "fps is 'often'"),
        ("clip.mp4", {"fps": 0}, "fps is 0"),
        ("clip.mp4", {"nframes": 4.5}, "nframes is 4.5"),
        ("clip.mp4", {"nframes": 4, "fps": 1}, "nframes beside fps"),
        ("clip.mp4", {"nframes": 4, "max_frames": 8}, "nframes beside max_frames"),
        ("clip.mp4", {"min_frames": 9, "max_frames": 8}, "min_frames is 9, above max_frames, 8"),
        ("clip.mp4", {"video_start": -1}, "video_start is -1"),
        ("clip.mp4", {"video_end": float("nan")}, "video_end is nan"),
        (CLIP, {"nframes": 2}, "nframes beside a list of frames"),
        (CLIP, {"video_start": 1}, "video_start beside a list of frames"),
        (CLIP, {"fps": 1, "sample_fps": 1}, "sample_fps beside fps"),
        (CLIP, {"frames_indices": [0, 1, 2]}, "frames_indices without fps"),
        (CLIP, {"frames_indices": [0, 1], "fps": 1}, "frames_indices do not fit 3 frames"),
        (CLIP, {"frames_indices": [0, 2, 1], "fps": 1}, "frames_indices do not fit"),
        (CLIP, {"frames_indices": [-1, 2, 3], "fps": 1}, "frames_indices do not fit"),
        (CLIP, {"frames_indices": 3, "fps": 1}, "frames_indices do not fit"),
        (CLIP, {"frames_indices": [0, 5, 9], "total_num_frames": 9, "fps": 1}, "frames_indices do not fit"),
        (CLIP, {"frames_indices": [0, 5, 9], "sample_fps": 1}, "sample_fps beside frames_indices"),
        (CLIP, {"total_num_frames": 9}, "total_num_frames is 9, 3 frames are given"),
    ],
)
def test_options_of_videos_that_cannot_be_used(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        media_of({"type": "video", "video": source, **options})


# Base64.


def encoded(format: str) -> bytes:
    buffer = BytesIO()
    PIL.Image.fromarray(CAT).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_base64_in_every_form_is_the_picture(format: str) -> None:
    data = encoded(format)
    text, wrapped = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    assert "\n" in wrapped
    expected = np.asarray(open_image(data))
    for part in (
        {"type": "image", "base64": text},
        {"type": "image", "base64": wrapped},
        {"type": "image", "base64": f"DATA:image/x;base64,{text}"},
        {"type": "image", "image": text},
        {"type": "image", "url": wrapped},
        {"type": "image", "image": f"data:image;base64,{text}"},
        {"type": "image_url", "image_url": {"url": f"Data:image/x;BASE64,{wrapped}"}},
        {"type": "image_url", "image_url": f"data:image/x;base64,{text.replace('+', '%2B').replace('=', '%3D')}"},
    ):
        (image,) = media_of(part)
        np.testing.assert_array_equal(np.asarray(open_image(image.source)), expected)


def test_a_file_is_not_taken_for_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "Qk" + "A" * 62  # the name of a file, and a bitmap in base64
    Path(name).write_bytes(encoded("PNG"))
    assert open_image(name).size == (96, 64)
    for missing in ("Qk.png", "iVBORw0KGgo", "iVBORw0KGgo" + "-" * 60, "/9j/" + "x" * 300 + ".jpg"):
        with pytest.raises(InputError, match=r"no such image file|cannot be read"):
            open_image(missing)
    with pytest.raises(InputError, match="base64: "):
        open_image("iVBORw0KGgo" + "A" * 61)
    Path("cat.png").write_bytes(encoded("PNG"))
    assert open_image(f"FILE://{tmp_path}/cat.png").size == (96, 64)


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 1e308, -1e308, 1e-320, float("inf"), float("nan"), "9" * 5000, [], {}]
)
@pytest.mark.parametrize("source", ["clip.mp4", CLIP], ids=["file", "frames"])
def test_no_number_makes_a_message_fail_otherwise(source: Any, value: Any) -> None:
    """Whatever a stranger sends as a number is an option or one line, in the end."""
    preparer = Preparer(artifact_without_graphs())
    for key in VIDEO.options:
        rates = {"fps": 1} if key == "frames_indices" and source is CLIP else {}
        indices = [value] * 3 if key == "frames_indices" else value
        with pytest.raises(InputError) as caught:
            preparer([as_messages([{"type": "video", "video": source, key: indices, **rates}])])
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)

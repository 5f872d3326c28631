"""Videos: frames, grids, timestamps and token ids as transformers has them, and one clear error for each bad one."""

from __future__ import annotations

import base64
import dataclasses
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata, read_video_pyav

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime import Qwen3VL, Video, prepare
from qwen3vl_export.runtime.pictures import video_file
from qwen3vl_export.runtime.pictures.frames import FrameRules, read_frame_rules, sample_frames
from qwen3vl_export.runtime.pictures.video import list_frames, open_video
from qwen3vl_export.runtime.prepare import Preparer
from qwen3vl_export.runtime.prompts.messages import as_messages

from ...fixtures.paths import TINY
from ...fixtures.standin import artifact_without_graphs
from ...fixtures.video_reference import whole_processor
from ...fixtures.videos import moving_frames, write_video

OFFICIAL = FrameRules(2.0, None, 4, 768)
PREPARER = Preparer(artifact_without_graphs())
RNG = np.random.default_rng(31)
QUESTION = "Which way does the shape move?"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos of 37 frames, 10 a second, in several formats."""
    folder = tmp_path_factory.mktemp("clips")
    frames = moving_frames(37)
    write_video(folder / "clip.mp4", frames, movflags="faststart")
    write_video(folder / "end.mp4", frames)  # its index is at its end
    write_video(folder / "clip.avi", frames, codec="mpeg4")
    write_video(folder / "clip.mkv", frames)  # does not say how many frames it has
    write_video(folder / "clip.webm", frames, codec="libvpx")
    return folder


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Qwen3VLProcessor:
    return whole_processor(monkeypatch)


def images(video: Video, rules: FrameRules = OFFICIAL) -> list[Any]:
    return [np.asarray(frame) for frame in open_video(video, rules).frames]


# Which frames.


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 200_000), st.floats(0.1, 240), st.sampled_from([None, 0.5, 1.0, 2.0, 7.3]))
def test_frames_are_chosen_as_transformers_chooses(total: int, fps: float, sample_fps: float | None) -> None:
    processor = Qwen3VLVideoProcessor.from_pretrained(TINY)
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    expected = processor.sample_frames(metadata, fps=sample_fps)
    np.testing.assert_array_equal(sample_frames(total, fps, OFFICIAL, sample_fps), expected)


def test_a_fixed_number_of_frames() -> None:
    rules = read_frame_rules({"num_frames": 6, "fps": None}, "video.json")
    processor = Qwen3VLVideoProcessor.from_pretrained(TINY, fps=None)
    expected = processor.sample_frames(VideoMetadata(total_num_frames=50, fps=25.0), num_frames=6)
    np.testing.assert_array_equal(sample_frames(50, 25.0, rules), expected)


def test_rules_are_read_and_completed() -> None:
    assert PREPARER.frame_rules == OFFICIAL  # the file leaves them out, as transformers allows
    assert read_frame_rules({"fps": 1, "min_frames": 2, "max_frames": 9}, "video.json") == FrameRules(1, None, 2, 9)
    for wrong in ({"fps": 2, "num_frames": 3}, {"fps": 0}, {"min_frames": 9, "max_frames": 3}):
        with pytest.raises(ArtifactError, match=r"video\.json: .* contradict"):
            read_frame_rules(wrong, "video.json")


# End to end, compared with the whole processor.


@pytest.mark.parametrize(
    ("count", "height", "width", "fps"),
    [(4, 64, 96, 2.0), (37, 64, 96, 10.0), (90, 90, 150, 29.97), (9, 300, 451, 3.0), (61, 33, 40, 24.0)],
)
def test_prompts_equal_the_processor(
    count: int, height: int, width: int, fps: float, processor: Qwen3VLProcessor
) -> None:
    frames = moving_frames(count, height, width)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    metadata = VideoMetadata(total_num_frames=count, fps=fps)
    expected = processor(text=[text], videos=[frames], video_metadata=[metadata])
    prepared = PREPARER([as_messages([Video(frames, fps), QUESTION])])
    assert prepared.image_grid_thw.tolist() == np.asarray(expected["video_grid_thw"]).tolist()
    assert prepared.input_ids.tolist() == expected["input_ids"]


@pytest.mark.parametrize(
    ("count", "options", "metadata"),
    [
        (4, {"fps": 25, "frames_indices": [3, 9, 40, 41]}, {"fps": 25, "frames_indices": [3, 9, 40, 41]}),
        (3, {"fps": 10, "frames_indices": [5, 15, 40]}, {"fps": 10, "frames_indices": [5, 15, 40]}),
        (4, {"sample_fps": 0.5}, {"fps": 0.5, "frames_indices": [0, 1, 2, 3]}),
        (4, {"sample_fps": 2, "raw_fps": 30}, {"fps": 30, "frames_indices": [0, 1, 2, 3]}),
    ],
)
def test_frames_chosen_before_have_the_times_the_processor_gives_them(
    count: int, options: dict[str, Any], metadata: dict[str, Any], processor: Qwen3VLProcessor
) -> None:
    """The last two: the metadata that qwen-vl-utils makes of those keys."""
    frames = moving_frames(count, 64, 96)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    of_video = VideoMetadata(total_num_frames=99, **metadata)
    expected = processor(text=[text], videos=[frames], video_metadata=[of_video], do_sample_frames=False)
    prepared = PREPARER([as_messages([{"type": "video", "video": frames, **options}, {"text": QUESTION}])])
    assert prepared.image_grid_thw.tolist() == np.asarray(expected["video_grid_thw"]).tolist()
    assert prepared.input_ids.tolist() == expected["input_ids"]


def test_pixels_equal_the_processor_where_nothing_is_resized(processor: Qwen3VLProcessor) -> None:
    frames = RNG.integers(0, 256, (21, 96, 128, 3), np.uint8)
    metadata = VideoMetadata(total_num_frames=21, fps=6.0)
    expected = processor.video_processor(videos=[frames], video_metadata=[metadata], return_tensors="np")
    picture = PREPARER.picture(Video(frames, 6.0))
    assert list(picture.grid) == expected["video_grid_thw"][0].tolist() == [4, 6, 8]
    np.testing.assert_allclose(picture.patches, expected["pixel_values_videos"], atol=1e-6)  # the order of arithmetic


@pytest.mark.parametrize("name", ["clip.mp4", "end.mp4", "clip.avi"])
def test_files_are_read_as_transformers_reads_them(clips: Path, name: str) -> None:
    processor = Qwen3VLVideoProcessor.from_pretrained(TINY)
    expected, metadata = read_video_pyav(str(clips / name), processor.sample_frames)
    clip = open_video(Video(clips / name), OFFICIAL)
    assert (clip.fps, clip.height, clip.width) == (metadata.fps, metadata.height, metadata.width) == (10, 64, 96)
    np.testing.assert_array_equal(clip.indices, metadata.frames_indices)
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in clip.frames]), expected)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm"])
def test_files_that_do_not_say_how_long_they_are(clips: Path, name: str) -> None:
    clip = open_video(Video(clips / name), OFFICIAL)
    assert clip.fps == 10 and clip.indices.tolist() == sample_frames(37, 10, OFFICIAL).tolist()
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        bar = np.asarray(frame)[:, :, 1].mean(axis=0).argmax()
        assert 0 <= bar - index * 2 < 8  # the frame that was asked for, not a neighbour


def matrix(*rows: tuple[int, int]) -> bytes:
    """The matrix of a track header (ISO/IEC 14496-12) that turns the picture: 16.16 fixed point, then 2.30."""
    (a, b), (c, d) = rows
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("rotation", "quarters"),
    [(matrix((0, 1), (-1, 0)), 3), (matrix((-1, 0), (0, -1)), 2), (matrix((0, -1), (1, 0)), 1)],
    ids=["clockwise", "half", "counterclockwise"],
)
def test_a_video_of_a_telephone_is_turned_upright(clips: Path, rotation: bytes, quarters: int) -> None:
    data = (clips / "clip.mp4").read_bytes()
    upright = matrix((1, 0), (0, 1))
    assert data.count(upright) == 2  # of the movie and of its track
    start = data.index(upright, data.index(b"tkhd"))
    clip = open_video(Video(data[:start] + rotation + data[start + len(rotation) :]), OFFICIAL)
    expected = [np.rot90(frame, quarters) for frame in images(Video(data))]
    assert (clip.height, clip.width) == expected[0].shape[:2]
    np.testing.assert_array_equal([np.asarray(frame) for frame in clip.frames], expected)


def test_every_way_to_name_a_file_is_the_same_video(clips: Path) -> None:
    path = clips / "clip.mp4"
    expected = images(Video(path))
    assert len(expected) == 7
    url = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    for source in (str(path), f"file://{path}", path.read_bytes(), url):
        np.testing.assert_array_equal(images(Video(source)), expected)


def test_a_rate_of_ones_own(clips: Path) -> None:
    assert len(images(Video(clips / "clip.mp4", sample_fps=10))) == 37
    assert len(images(Video(clips / "clip.mp4", sample_fps=0.1))) == 4  # never fewer than min_frames
    assert len(images(Video(clips / "clip.mp4"), dataclasses.replace(OFFICIAL, max_frames=5))) == 5


# Folders, lists and arrays.


def test_a_folder_is_its_frames_in_order(tmp_path: Path) -> None:
    frames = moving_frames(12)
    for index, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert [path.name for path in list_frames(tmp_path)] == [f"frame{index}.png" for index in range(12)]
    for source in (tmp_path, str(tmp_path)):
        np.testing.assert_array_equal(images(Video(source, fps=2)), frames)
    expected = PREPARER([as_messages([Video(frames, 4.0), QUESTION])])
    prepared = PREPARER([as_messages([Video(tmp_path, 4.0), QUESTION])])
    assert prepared.texts == expected.texts and prepared.texts[0].count(" seconds>") == 3
    np.testing.assert_array_equal(prepared.pixel_values, expected.pixel_values)


def test_an_array_is_a_list_of_frames() -> None:
    frames = moving_frames(6)
    for source in (frames, list(frames), tuple(PIL.Image.fromarray(frame) for frame in frames)):
        np.testing.assert_array_equal(images(Video(source)), frames)


def test_frames_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    missing = [PIL.Image.fromarray(moving_frames(1)[0]), *(tmp_path / f"{index}.png" for index in range(5))]
    clip = open_video(Video(missing), OFFICIAL)
    assert next(clip.frames).size == (96, 64)
    with pytest.raises(InputError, match=r"0\.png: no such image file"):
        next(clip.frames)


# What is wrong.


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


@pytest.mark.parametrize("name", ["clip.mp4", "end.mp4", "clip.avi", "clip.mkv", "clip.webm"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_truncated_file(clips: Path, tmp_path: Path, name: str, share: float) -> None:
    path = cut(clips / name, tmp_path / name, share)
    with pytest.raises(InputError, match=rf"{path}: .*(truncated|a video of 0 frames)") as caught:
        images(Video(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_with_a_hole(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "clip.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 1000 :] = bytes(len(data) - start - 1000)
    path = tmp_path / "hole.mp4"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"hole\.mp4: .*damaged"):
        images(Video(path, sample_fps=10))


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "MAX_FRAME_PIXELS", 64 * 96)
    assert len(images(Video(clips / "clip.mp4"))) == 7
    monkeypatch.setattr(video_file, "MAX_FRAME_PIXELS", 64 * 96 - 1)
    monkeypatch.setattr(video_file, "decode_frames", lambda *_: pytest.fail("decoded"))
    for name in ("clip.mp4", "clip.avi", "clip.webm"):
        with pytest.raises(InputError, match=rf"{name}: 96x64, too many pixels: at most 6,143 are decoded"):
            images(Video(clips / name))


def test_frames_that_are_larger_than_the_header_says_are_refused_by_the_decoder(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "MAX_FRAME_PIXELS", 64 * 96 // 2 - 1)
    monkeypatch.setattr(video_file, "check_size", lambda *_: None)
    with pytest.raises(InputError, match=r"clip\.mp4: not a video, damaged or truncated"):
        images(Video(clips / "clip.mp4"))


def test_frames_that_are_too_narrow_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "strip.avi", np.zeros((4, 16, 3216, 3), np.uint8), codec="mpeg4")
    monkeypatch.setattr(video_file, "decode_frames", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"strip\.avi: 3216x16: one side is 201 times the other"):
        images(Video(path))


def test_more_frames_than_the_context_holds_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare, "frames_to_patches", lambda *_: pytest.fail("decoded"))
    preparer = Preparer(artifact_without_graphs())
    preparer.frame_rules = dataclasses.replace(OFFICIAL, every_frame=True)
    count = 2 * preparer.facts.max_position_embeddings + 2
    with pytest.raises(InputError, match=rf"a video of {count} frames has \d+ tokens, the context holds \d+\. Use"):
        preparer.picture(Video([PIL.Image.new("RGB", (96, 64))] * count))


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "a\0b.mp4", "caf\udce9.mp4"], ids=["long", "null", "bytes"])
def test_names_that_no_file_can_have_are_one_line(name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read|no such video file") as caught:
        images(Video(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rates", [(5e-324,), (25.0, 1e308), (1e7,), (25.0, 1e-7)])
def test_rates_that_no_video_has_are_refused(rates: tuple[float, ...]) -> None:
    fps, *sample_fps = rates
    with pytest.raises(InputError, match=r"frames per second. Use a number from 1e-06 to 1000000"):
        sample_frames(10, fps, OFFICIAL, *sample_fps)


def test_a_codec_nobody_knows(clips: Path, tmp_path: Path) -> None:
    path = tmp_path / "strange.mp4"
    path.write_bytes((clips / "clip.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match=r"strange\.mp4: no decoder for its codec"):
        images(Video(path))


def test_files_that_are_no_video(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    for path, data, message in (
        (sound, None, "no video in this file"),
        (tmp_path / "text.mp4", b"not a video at all", "not a video, damaged or truncated"),
        (tmp_path / "empty.mp4", b"", "not a video, damaged or truncated"),
        (playlist, None, "not a video, damaged or truncated"),
    ):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{path.name}: {message}"):
            images(Video(path))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (Video("nowhere.mp4"), r"nowhere\.mp4: no such video file"),
        (Video([]), "a video of 0 frames"),
        (Video(np.zeros((0, 8, 8, 3), np.uint8)), "a video of 0 frames"),
        (Video(np.zeros((8, 8, 3), np.uint8)), r"a video array of shape \(8, 8, 3\)"),
        (Video(3), "a video cannot be a int"),  # type: ignore[arg-type]
        (Video(moving_frames(4), -1), "a video of -1 frames per second"),
        (Video(moving_frames(4), float("nan")), "a video of nan frames per second"),
        (Video(moving_frames(4), sample_fps=0), "a video of 0 frames per second"),
        (Video("data:video/mp4;base64,@"), "data URL: not base64"),
        (Video("http://127.0.0.1/clip.mp4"), "is not a public address"),
    ],
)
def test_what_is_no_video(video: Video, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PREPARER([as_messages([video, QUESTION])])


def test_a_folder_without_frames(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no images in this folder, a video of 0 frames"):
        images(Video(tmp_path))


@pytest.fixture
def no_pyav(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "av", None)
    yield


def test_without_pyav_the_error_says_what_to_install(clips: Path, no_pyav: None) -> None:
    with pytest.raises(InputError, match=r"video files need PyAV\. Install it: pip install 'qwen3vl-export\[video\]'"):
        images(Video(clips / "clip.mp4"))
    assert len(images(Video(moving_frames(4)))) == 4  # frames need nothing


def test_a_video_file_is_answered_about(clips: Path, tiny_artifact: Path) -> None:
    model = Qwen3VL.load(tiny_artifact, threads=1)
    frames = np.stack(images(Video(clips / "clip.mp4", sample_fps=10)))
    answer = model.generate([Video(clips / "clip.mp4"), QUESTION], 16, temperature=0)
    assert answer == model.generate([Video(frames, fps=10), QUESTION], 16, temperature=0) != ""

"""Pictures from anywhere: colour as transformers has it, and one clear error for each bad one."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import UnidentifiedImageError
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from parity_tests.fixtures.paths import ROOT
from parity_tests.harness.cases.picture_kinds import PHOTOGRAPH
from parity_tests.harness.sides.pytorch.pixel_reference import load_file
from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime.pictures import images as loading
from qwen3vl_export.runtime.pictures.images import FORMATS, open_image

from ...fixtures.image_files import EPS, encoded, writable

RNG = np.random.default_rng(5)


def noise(mode: str) -> PIL.Image.Image:
    image = PIL.Image.fromarray(RNG.integers(0, 256, (6, 9, 4), np.uint8), "RGBA" if mode == "RGBA" else None)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def pixels(image: PIL.Image.Image) -> Any:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"),
        ("RGB", ".jpg"),
        ("RGB", ".webp"),
        ("RGBA", ".png"),
        ("LA", ".png"),
        ("P", ".gif"),
        ("P", ".png"),
        ("L", ".png"),
        ("1", ".png"),
        ("CMYK", ".jpg"),
        ("CMYK", ".tiff"),
    ],
)
def test_files_equal_load_image(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    noise(mode).save(path)
    with PIL.Image.open(path) as opened:
        expected = np.asarray(load_image(opened))
    for source in (path, str(path), f"file://{path}", path.read_bytes()):
        np.testing.assert_array_equal(pixels(open_image(source)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_upright_by_its_exif_tag(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "rotated.png"
    noise("RGB").save(path, exif=exif)
    image = open_image(path)
    assert image.size == ((9, 6) if orientation < 5 else (6, 9))
    with PIL.Image.open(path) as opened:
        np.testing.assert_array_equal(pixels(image), np.asarray(load_image(opened)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK", "YCbCr"])
def test_pil_images_equal_convert_to_rgb(mode: str) -> None:
    image = noise(mode)
    np.testing.assert_array_equal(pixels(open_image(image)), convert_to_rgb(image, return_numpy=True))


def test_a_transparent_colour_in_a_file_lies_over_white() -> None:
    """As in transformers, where the colour's mark survives `load_image` and the processor finds it."""
    buffer = io.BytesIO()
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(buffer, "GIF", transparency=1)
    image = open_image(buffer.getvalue())
    assert [image.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_a_transparent_palette_colour_lies_over_white() -> None:
    image = noise("P")
    image.info["transparency"] = 0
    np.testing.assert_array_equal(pixels(open_image(image)), convert_to_rgb(image, return_numpy=True))


def test_sixteen_bit_gray_keeps_its_upper_bits(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (5, 7), np.uint16)
    path = tmp_path / "deep.png"
    PIL.Image.fromarray(deep).save(path)
    for source in (path, PIL.Image.fromarray(deep), PIL.Image.fromarray(deep.astype(np.int32)), deep):
        np.testing.assert_array_equal(pixels(open_image(source))[:, :, 0], deep >> 8)


def test_gray_in_wide_containers() -> None:
    gray = RNG.integers(0, 256, (5, 7), np.uint8)
    for wide in (gray.astype(np.int32), (gray / 255).astype(np.float32)):
        np.testing.assert_allclose(pixels(open_image(PIL.Image.fromarray(wide)))[:, :, 0], gray, atol=1)


def test_arrays_of_every_layout() -> None:
    colour = RNG.integers(0, 256, (6, 9, 3), np.uint8)
    for array in (colour, colour.transpose(2, 0, 1), (colour / 255).astype(np.float64)):
        np.testing.assert_allclose(pixels(open_image(array)), colour, atol=1)
    gray = colour[:, :, 0]
    for array in (gray, gray[:, :, None], gray[None]):
        np.testing.assert_array_equal(pixels(open_image(array)), np.stack([gray] * 3, axis=2))
    checks = gray > 128
    assert set(pixels(open_image(checks)).flat) == {0, 255}


def mpo() -> bytes:
    """A photograph with a second picture in it, as phones take them."""
    buffer = io.BytesIO()
    noise("RGB").save(buffer, "MPO", save_all=True, append_images=[noise("RGB")])
    return buffer.getvalue()


@pytest.mark.parametrize("format", [*FORMATS, "MPO"])
def test_each_documented_format_is_read(format: str, tmp_path: Path) -> None:
    data = mpo() if format == "MPO" else encoded(format)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        assert opened.format == format.upper()
        expected = np.asarray(load_image(opened))
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, f"data:image/any;base64,{base64.b64encode(data).decode()}"):
        np.testing.assert_array_equal(pixels(open_image(source)), expected)


def others() -> list[str]:
    """The formats that Pillow can write and could open, beside the documented ones."""
    PIL.Image.init()
    both = set(PIL.Image.OPEN) & set(PIL.Image.SAVE)
    return sorted(name for name in both - set(map(str.upper, FORMATS)) if writable(name))


@pytest.mark.parametrize("format", others())
def test_no_other_format_is_read(format: str) -> None:
    data = encoded(format)
    with pytest.raises(InputError, match=r"begins as \w+ files do|not an image that is read here") as caught:
        open_image(data)
    assert "Pass a PNG, JPEG, WebP, GIF, BMP or TIFF file" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["path", "file URL", "data URL", "bytes"])
def test_postscript_that_is_called_a_picture_runs_nothing(kind: str, tmp_path: Path, ghostscript: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(EPS)
    data_url = f"data:image/png;base64,{base64.b64encode(EPS).decode()}"
    source = {"path": path, "file URL": f"file://{path}", "data URL": data_url, "bytes": EPS}[kind]
    with pytest.raises(InputError, match="begins as EPS files do, which are not read"):
        open_image(source)
    with pytest.raises(UnidentifiedImageError):
        load_file(EPS)
    assert not ghostscript.exists()


def test_the_ghostscript_of_these_tests_would_be_run(ghostscript: Path) -> None:
    with pytest.raises(OSError), PIL.Image.open(io.BytesIO(EPS)) as image:
        image.load()
    assert ghostscript.exists()


def test_image_files_are_opened_in_one_place() -> None:
    sources = [
        *ROOT.glob("qwen3vl_export/**/*.py"),
        *ROOT.glob("parity_tests/harness/**/*.py"),
        *ROOT.glob("scripts/**/*.py"),
    ]
    opening = [path.name for path in sources if re.search(r"\bImage\.open\(", path.read_text("utf-8"))]
    assert opening == ["images.py"]


def test_data_url() -> None:
    buffer = io.BytesIO()
    image = noise("RGB")
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    np.testing.assert_array_equal(pixels(open_image(url)), np.asarray(image))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Path("nowhere.png"), "nowhere.png: no such image file"),
        (PHOTOGRAPH.parent, "cannot be read"),
        (b"", "the file is empty"),
        (b"not a picture", "not an image that is read here"),
        (PHOTOGRAPH.read_bytes()[:5000], "damaged or truncated"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (np.zeros((5, 5, 2), np.uint8), r"image array of shape \(5, 5, 2\)"),
        (np.zeros(4, np.uint8), r"image array of shape \(4,\)"),
        (np.full((4, 4), 2.0), "image array of float64"),
        (np.zeros((4, 4), np.int64), "image array of int64"),
        (PIL.Image.new("RGB", (0, 5)), "0x5, it has no pixels"),
        ("http://127.0.0.1/cat.png", "127.0.0.1: 127.0.0.1 is not a public address"),
        ("data:image/png;base64,@@", "not base64"),
        (None, "cannot be a NoneType"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_bad_images_are_one_clear_line(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tiff"])
def test_damage_anywhere_is_an_input_error_or_a_picture(suffix: str) -> None:
    buffer = io.BytesIO()
    PIL.Image.open(PHOTOGRAPH).convert("RGB").resize((64, 48)).save(buffer, PIL.Image.registered_extensions()[suffix])
    whole = buffer.getvalue()
    refused = 0
    for _ in range(40):
        broken = bytearray(whole)
        for position in RNG.integers(0, len(whole), 12):
            broken[position] = RNG.integers(0, 256)
        try:
            assert open_image(bytes(broken)).mode == "RGB"
        except InputError:
            refused += 1
        with pytest.raises(InputError):
            open_image(whole[: int(RNG.integers(1, min(64, len(whole))))])
    assert refused or suffix == ".bmp"


def gif_that_announces(width: int, height: int) -> bytes:
    """43 bytes: a canvas of any size, a palette of two colours, and a frame of one pixel."""
    size = struct.pack("<HH", width, height)
    frame = b"!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    return b"GIF89a" + size + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff" + frame


def headers_that_announce(width: int, height: int) -> dict[str, bytes]:
    """The beginning of a file in each format, as an encoder writes it, with another size."""
    box = {"PNG": (">II", 16), "BMP": ("<ii", 18), "JPEG": (">HH", None)}
    files = {"GIF": gif_that_announces(width, height)}
    for format, (layout, start) in box.items():
        data = bytearray(encoded(format))
        order = (width, height) if format != "JPEG" else (height, width)
        struct.pack_into(layout, data, data.index(b"\xff\xc0") + 5 if start is None else start, *order)
        if format == "PNG":
            struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        files[format] = bytes(data)
    return files


@pytest.mark.parametrize("format", ["GIF", "PNG", "BMP", "JPEG"])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((15000, 15000), "too many pixels"),
        ((10700, 16730), r"10700x16730, too many pixels: at most 178,956,970 are decoded"),
        ((20100, 100), r"20100x100: one side is 201 times the other\. Crop it: at most 200 times"),
        ((1, 60000), r"1x60000: one side is 60000 times the other"),
    ],
)
def test_what_a_header_announces_is_refused_before_it_is_decoded(
    format: str, size: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Pillow's own limit was switched off, as training scripts do."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(PIL.GifImagePlugin.GifImageFile, "load_prepare", lambda _: pytest.fail("decoded"))
    with pytest.raises(InputError, match=message) as caught:
        open_image(headers_that_announce(*size)[format])
    assert "\n" not in str(caught.value)


def test_pillows_own_limit_holds_where_it_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 300 * 451 // 2)
    assert open_image(PHOTOGRAPH).size == (451, 300)  # twice as many are allowed, without a warning
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 300 * 451 // 2 - 1)
    with pytest.raises(InputError, match=r"chelsea\.png: too many pixels"):
        open_image(PHOTOGRAPH)


SIDE = 3000
PEAK = """
import re, sys
from pathlib import Path
from qwen3vl_export.runtime.pictures.images import open_image
def kilobytes(name):
    return int(re.search(name + ":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = kilobytes("VmRSS")
open_image(sys.argv[1])
print((kilobytes("VmHWM") - before) * 1024)
"""


def large_pictures() -> dict[str, tuple[PIL.Image.Image, str, dict[str, Any]]]:
    """By what costs memory: the picture, its format and the options it is saved with."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return {
        "palette": (PIL.Image.new("P", (SIDE, SIDE)), "GIF", {"transparency": 0}),
        "rotated": (PIL.Image.new("RGB", (SIDE, SIDE)), "JPEG", {"exif": exif}),
        "alpha": (PIL.Image.new("LA", (SIDE, SIDE)), "PNG", {}),
        "deep": (PIL.Image.new("I;16", (SIDE, SIDE)), "PNG", {}),
        "float": (PIL.Image.new("F", (SIDE, SIDE)), "TIFF", {"compression": "tiff_lzw"}),
    }


@pytest.mark.parametrize("kind", large_pictures())
def test_a_picture_takes_little_more_than_its_pixels_and_their_rgb(kind: str, tmp_path: Path) -> None:
    """At most two and a half times its RGB pixels, which Pillow stores in four bytes; in a process of its own."""
    picture, format, options = large_pictures()[kind]
    path = tmp_path / "picture"
    picture.save(path, format, **options)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], stdout=subprocess.PIPE, check=True, env=environment)
    assert int(done.stdout) < 2.5 * SIDE * SIDE * 4


def test_strips_are_converted_as_the_whole_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transparent colour of a palette or of gray, alpha, 32-bit integers: whatever depends on more than a pixel."""
    transparent = noise("P")
    transparent.info["transparency"] = 3
    gray = noise("L")
    gray.info["transparency"] = gray.getpixel((0, 5))
    wide = PIL.Image.fromarray(np.array([[0, 255], [3, 60000]], np.int32))
    floats = PIL.Image.fromarray(np.array([[0.5, np.nan], [-1, 7]], np.float32))
    images = [transparent, gray, noise("RGBA"), noise("LA"), noise("CMYK"), noise("1"), wide, floats]
    expected = [pixels(open_image(image)) for image in images]
    monkeypatch.setattr(loading, "STRIP", 1)
    for image, whole in zip(images, expected, strict=True):
        np.testing.assert_array_equal(pixels(open_image(image)), whole)
    assert expected[-1][:, :, 0].tolist() == [[127, 0], [0, 255]]


def test_a_pil_image_that_cannot_be_decoded_is_one_line() -> None:
    truncated = PIL.Image.open(io.BytesIO(PHOTOGRAPH.read_bytes()[:100_000]))
    for source in (truncated, PIL.Image.new("La", (4, 4))):
        with pytest.raises(
            InputError, match="damaged or truncated image, or colours that cannot be converted"
        ) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)


def test_memory_that_is_not_there_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", load)
    with pytest.raises(MemoryError):
        open_image(PHOTOGRAPH)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.png", "caf\udce9.png"], ids=["long", "null", "bytes"])
def test_names_that_no_file_can_have_are_one_line(name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read|no such image file") as caught:
        open_image(name)
    assert "\n" not in str(caught.value)


def test_a_picture_through_a_pipe_and_from_an_endless_device(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(PHOTOGRAPH.read_bytes()))
    writer.start()
    assert open_image(pipe).size == (451, 300)
    writer.join()
    with pytest.raises(InputError, match="/dev/zero: not an image that is read here"):
        open_image("/dev/zero")


@pytest.mark.parametrize("format", ["GIF", "WebP", "TIFF", "PNG"])
def test_of_several_frames_only_the_first_is_decoded(format: str) -> None:
    frames = [noise("RGB").convert("P" if format == "GIF" else "RGB") for _ in range(3)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WebP" else {})
    )
    np.testing.assert_array_equal(pixels(open_image(buffer.getvalue())), np.asarray(frames[0].convert("RGB")))


def test_a_file_url_may_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "a cat.png").write_bytes(PHOTOGRAPH.read_bytes())
    assert open_image(f"file://{tmp_path}/a%20cat.png").size == (451, 300)

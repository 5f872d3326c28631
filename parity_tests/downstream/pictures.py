"""Pictures as downstream runtimes get them: the content of a file."""

from __future__ import annotations

import io

from PIL import Image

Picture = Image.Image | bytes


def png(image: Picture) -> bytes:
    """A PNG of the picture on white and without a colour profile; the bytes of a file as they are.

    transformers composes transparency over white and ignores profiles; decoders of other runtimes drop transparency.
    """
    if isinstance(image, bytes):
        return image
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    buffer = io.BytesIO()
    flat.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()

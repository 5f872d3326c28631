"""Pictures as downstream runtimes get them: the content of a file."""

from __future__ import annotations

import io

from PIL import Image


def png(image: Image.Image) -> bytes:
    """A PNG of the picture on white and without a colour profile.

    transformers composes transparency over white and ignores profiles; decoders of other runtimes drop transparency.
    """
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    buffer = io.BytesIO()
    flat.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()

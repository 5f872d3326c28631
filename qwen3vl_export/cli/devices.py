"""The options of commands that run an artifact which say where its graphs run.

Knows options; the devices are those of `runtime/devices.py`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import InputError

Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where the graphs run: cpu, cuda, cuda:1, webgpu, or a provider of onnxruntime by name.",
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="An option of that provider, as onnxruntime has it; can be repeated."),
]


def provider_options(pairs: list[str] | None) -> dict[str, str]:
    """The options of a provider, from `KEY=VALUE`.

    Raises:
        InputError: one without a key or an equals sign.
    """
    options = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--provider-option {pair!r}: not KEY=VALUE", "Write --provider-option device_id=1")
        options[key] = value
    return options

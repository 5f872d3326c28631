"""Where graphs run: the name of a device to one of onnxruntime's execution providers, proven to start before any work.

A device is `cpu`, the default, another name in `PROVIDERS` (`cuda`, `webgpu`), such a name with a number (`cuda:1`), or
what onnxruntime calls a provider (`CUDAExecutionProvider`), listed here or not. Nodes that the provider has no kernel
for run on the CPU.

onnxruntime itself goes on without a provider that is missing or does not start. Here that is an error, because a model
that answers 20 times as slowly as it should looks as if it hung.

Knows onnxruntime's packages and providers; nothing about graphs.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from typing import Any

import onnxruntime as ort

from ..errors import InputError

HOST = "cpu"  # onnxruntime's name of the memory that numpy's arrays are in
SILENT, USUAL = 4, 2  # severities of onnxruntime's log: fatal errors only, warnings and worse
# A model in ONNX's wire format with one node, `y = Identity(x)`, for tensors of any shape.
IDENTITY = (
    b'\x08\x08:+\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\t\n\x01x\x12\x04\n\x02\x08%(type)cb\t\n\x01y\x12\x04\n\x02\x08%(type)cB\x04\n\x00\x10\r"
)
PLACE_IN_SOURCES = re.compile(r"was false\. |: [A-Z_]+ : ")  # ends what onnxruntime says before the reason
DOCUMENTATION = "https://onnxruntime.ai/docs/execution-providers"
FLOAT32, FLOAT16 = 1, 10  # onnx.TensorProto.DataType


@dataclass(frozen=True)
class Provider:
    """One of onnxruntime's execution providers.

    Attributes:
        name: onnxruntime's.
        package: the package on PyPI that has it; empty if none is known here.
        requires: what it needs beside that package.
        memory: onnxruntime's name of the memory in which graphs can read and write a cache in place; empty if none is
            known. In any other, past and present would be copies, and the whole buffer be taken for tokens.
        number: its option that chooses one of several devices; empty if it has none.
        mixes_lengths: whether it decodes rows of different lengths in one batch, as far as is known.
        reads_integers: whether it reads a cache in 8 bits, as far as is known.
    """

    name: str
    package: str = ""
    requires: str = ""
    memory: str = ""
    number: str = ""
    mixes_lengths: bool = True
    reads_integers: bool = False


CUDA_PACKAGE = "onnxruntime-gpu"
CUDA = f"an NVIDIA GPU, its driver, and CUDA: pip install '{CUDA_PACKAGE}[cuda,cudnn]'"
PROVIDERS: dict[str, Provider] = {  # by the name of the device
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", memory=HOST, reads_integers=True),
    "cuda": Provider("CUDAExecutionProvider", CUDA_PACKAGE, CUDA, "cuda", "device_id"),
    "tensorrt": Provider("TensorrtExecutionProvider", CUDA_PACKAGE, f"TensorRT, {CUDA}", number="device_id"),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "onnxruntime-webgpu",
        "a GPU and its driver, on Linux also libvulkan.so.1",
        "webgpu",
        mixes_lengths=False,  # GroupQueryAttention of 1.27: logits of a second token off by 2 of 18, of a prompt right
    ),
    "directml": Provider("DmlExecutionProvider", "onnxruntime-directml", "Windows and a GPU", number="device_id"),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino", "hardware that OpenVINO supports"),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx", "an AMD GPU, ROCm", number="device_id"),
    "coreml": Provider("CoreMLExecutionProvider", "onnxruntime", "a Mac"),
}


@dataclass(frozen=True)
class Device:
    """Where graphs run.

    Attributes:
        name: as the caller wrote it.
        options: the provider's, as onnxruntime takes them.
        number: which of several devices.
    """

    name: str = "cpu"
    provider: Provider = PROVIDERS["cpu"]
    options: Mapping[str, str] = field(default_factory=dict)
    number: int = 0

    @property
    def providers(self) -> list[Any]:
        """onnxruntime's argument: the provider, and the CPU for nodes that it has no kernel for."""
        host = PROVIDERS["cpu"].name
        return [(self.provider.name, dict(self.options)), *([host] if self.provider.name != host else [])]


CPU = Device()


def choose_device(name: str = "cpu", options: Mapping[str, Any] | None = None) -> Device:
    """The device of this name, once its provider has started.

    Args:
        name: of a device (`cuda`, `cuda:1`) or of one of onnxruntime's providers.
        options: the provider's, see `DOCUMENTATION`.

    Raises:
        InputError: no such device, or this onnxruntime does not have its provider or cannot start it.
    """
    device = read_device(name, options or {})
    if device == CPU:
        return CPU
    provider = device.provider
    if provider.name not in ort.get_available_providers():
        raise InputError(
            f"device {name}: onnxruntime {ort.__version__} has no {provider.name} here", how_to_install(provider)
        )
    if provider.package == CUDA_PACKAGE and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing
            ort.preload_dlls()  # from NVIDIA's packages on PyPI, where nothing else looks for them
    with quiet_log():
        start_identity(device, FLOAT32)
    return device


def read_device(name: str, options: Mapping[str, Any]) -> Device:
    """A device by its name, whether its provider is there or not.

    Raises:
        InputError: no device's name, or a number that it cannot have.
    """
    kind, colon, number = str(name).partition(":")
    by_name = {provider.name: provider for provider in PROVIDERS.values()}
    provider = PROVIDERS.get(kind) or by_name.get(kind)
    if provider is None:
        available = ort.get_available_providers()
        if kind not in available:
            raise InputError(
                f"device {name!r}: no such device",
                f"Use {', '.join(PROVIDERS)}, or a provider of this onnxruntime: {', '.join(available)}",
            )
        provider = Provider(kind)
    settings = {str(key): str(value) for key, value in options.items()}
    if colon:
        if not provider.number:
            raise InputError(f"device {name!r}: {kind} has no numbers", f"Write {kind}")
        settings[provider.number] = number
    number = settings.get(provider.number, "0")
    if not re.fullmatch(r"[0-9]{1,3}", number):
        raise InputError(f"device {name!r}: {number!r} is no number of a device", f"Write {kind}:0, {kind}:1, …")
    return Device(str(name), provider, settings, int(number))


def how_to_install(provider: Provider) -> str:
    """What to do where this onnxruntime lacks a provider. Its packages share their files: only one can be installed."""
    if provider.package in ("", "onnxruntime"):
        return f"It takes {provider.requires}" if provider.requires else "Install an onnxruntime that has it"
    installed = " ".join(packages_distributions().get("onnxruntime", ["onnxruntime"]))
    return f"pip uninstall {installed}, then pip install {provider.package}; it takes {provider.requires}"


def start_session(device: Device, model: Any, options: Any) -> Any:
    """An `onnxruntime.InferenceSession` that runs on a device, or not at all.

    Args:
        model: a path or bytes.

    Raises:
        InputError: the provider does not start. What onnxruntime says of the model itself is raised as it is.
    """
    name = device.provider.name
    try:
        session = ort.InferenceSession(model, options, providers=device.providers, enable_fallback=0)
        started, reason = name in session.get_providers(), ""
    except RuntimeError as error:  # also the base of what it raises about models
        if device == CPU or type(error) is not RuntimeError:
            raise
        started, reason = False, f" ({PLACE_IN_SOURCES.split(str(error))[-1].strip()})"
    if not started:
        advice = f"It takes {device.provider.requires}" if device.provider.requires else "Choose another device"
        if reason and device.options:
            advice = f"Check its options, {DOCUMENTATION}"
        raise InputError(f"device {device.name}: {name} does not start{reason}", advice)
    return session


def start_identity(device: Device, element_type: int) -> Any:
    """A session on a device that returns its input `x` as `y`, for tensors of a type in `onnx.TensorProto.DataType`.

    Raises:
        InputError: as `start_session`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    return start_session(device, identity_model(element_type), options)


def identity_model(element_type: int) -> bytes:
    """The bytes of a model that returns its input, for tensors of a type in `onnx.TensorProto.DataType`."""
    return IDENTITY % {b"type": element_type}


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keep what onnxruntime logs outside of sessions off standard error; the caller raises it as an error."""
    ort.set_default_logger_severity(SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(USUAL)

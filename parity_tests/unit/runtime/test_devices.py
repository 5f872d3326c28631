"""Devices: names to onnxruntime's providers, one line where one is missing, and caches in a device's memory.

There is no GPU here: providers are faked, and the memory of a device is that of the CPU, read and written through
onnxruntime as another device's would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from qwen3vl_export.errors import InputError
from qwen3vl_export.runtime import GREEDY, Qwen3VL
from qwen3vl_export.runtime.cache import BLOCK, JoinedCache, SharedCache
from qwen3vl_export.runtime.decoder import no_features
from qwen3vl_export.runtime.devices import (
    CPU,
    FLOAT16,
    FLOAT32,
    PROVIDERS,
    Device,
    Provider,
    choose_device,
    identity_model,
)
from qwen3vl_export.runtime.generate import prefill
from qwen3vl_export.runtime.memory import DeviceMemory, HostMemory
from qwen3vl_export.runtime.prompts.messages import as_messages

from ...fixtures.commands import invoke

HOST = PROVIDERS["cpu"].name
QUESTIONS = ("What is 2+3?", "How many shapes are there, and which of them is the largest of all? " * 4, "Hi")


class FakeSession:
    """What onnxruntime makes of a request for providers: those that start, in that order."""

    started: tuple[str, ...] = (HOST,)
    failure: Exception | None = None

    def __init__(self, model: Any, options: Any, providers: list[Any], enable_fallback: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.providers = providers
        assert not enable_fallback

    def get_providers(self) -> list[str]:
        names = [provider if isinstance(provider, str) else provider[0] for provider in self.providers]
        return [name for name in names if name in self.started]


@pytest.fixture
def every_provider(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """An onnxruntime with all providers, of which only the CPU's starts."""
    session = type("Session", (FakeSession,), {})
    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider.name for provider in PROVIDERS.values()])
    return session


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_is_not_there_is_one_line_that_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [HOST])
    provider = PROVIDERS[name]
    with pytest.raises(InputError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert f"device {name}: onnxruntime {ort.__version__} has no {provider.name} here" in message
    assert provider.requires in message
    assert provider.package == "onnxruntime" or f"pip install {provider.package};" in message
    assert "pip uninstall onnxruntime," in message or provider.package == "onnxruntime"


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_does_not_start_is_one_line(name: str, every_provider: type[FakeSession]) -> None:
    """onnxruntime warns and computes on the CPU, or raises; which of them depends on the provider."""
    with pytest.raises(InputError, match=f"^device {name}: {PROVIDERS[name].name} does not start. It takes "):
        choose_device(name)
    every_provider.failure = RuntimeError("x.cc:65 Initialize() status was false. No supported adapters")
    with pytest.raises(InputError, match=r"does not start \(No supported adapters\)\. It takes "):
        choose_device(name)


def test_the_device_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CUDAExecutionProvider"):
        Qwen3VL.load(tmp_path / "nowhere", device="cuda")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cuda", {}, ("CUDAExecutionProvider", {})),
        ("cuda:2", {}, ("CUDAExecutionProvider", {"device_id": "2"})),
        ("cuda:1", {"use_tf32": 0}, ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"})),
        ("webgpu", {"validationMode": "full"}, ("WebGpuExecutionProvider", {"validationMode": "full"})),
        ("CUDAExecutionProvider", {"device_id": 3}, ("CUDAExecutionProvider", {"device_id": "3"})),
        ("MyExecutionProvider", {"key": "value"}, ("MyExecutionProvider", {"key": "value"})),
    ],
)
def test_providers_and_their_options_reach_onnxruntime(
    name: str, options: dict[str, Any], expected: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", type("Session", (FakeSession,), {"started": (expected[0], HOST)}))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [expected[0], HOST])
    device = choose_device(name, options)
    assert device.providers == [expected, HOST]
    assert device.number == int(expected[1].get("device_id", 0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "no such device. Use cpu, cuda, "),
        ("", "no such device"),
        ("CUDA", "no such device"),
        ("cuda:", "'' is no number"),
        ("cuda:x", "'x' is no number"),
        ("cuda:-1", "'-1' is no number"),
        ("webgpu:1", "webgpu has no numbers"),
        ("cpu:0", "cpu has no numbers"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_device(name)


def test_the_cpu_needs_nothing() -> None:
    assert choose_device() == choose_device("cpu") == CPU
    assert choose_device("cpu", {"use_arena": 0}).providers == [(HOST, {"use_arena": "0"})]


@pytest.mark.parametrize(("element_type", "dtype"), [(FLOAT32, np.float32), (FLOAT16, np.float16)])
def test_the_model_that_copies_takes_any_shape_and_no_other_type(element_type: int, dtype: type) -> None:
    session = ort.InferenceSession(identity_model(element_type), providers=[HOST])
    assert [node.type for node in (*session.get_inputs(), *session.get_outputs())] == [ort_type(dtype)] * 2
    for shape in ((), (3,), (2, 0, 5), (1, 2, 3, 4)):
        array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
        np.testing.assert_array_equal(session.run(None, {"x": array})[0], array)


def ort_type(dtype: type) -> str:
    return {np.float32: "tensor(float)", np.float16: "tensor(float16)"}[dtype]


RUNS = ((1, 7), (3, None), (3, 16))  # rows, tokens a call of a prompt


def logits_of(model: Qwen3VL) -> list[Any]:
    """The logits of every step of answers to one question and to three, prompts read whole and in pieces."""
    results = []
    for rows, chunk in RUNS:
        prepared = model.prepare([as_messages(question) for question in QUESTIONS[:rows]])
        answer = model.generate_steps(prepared, 4, GREEDY, chunk, frozenset())
        results.append(np.stack([step.logits for step in answer]))
    return results


@pytest.fixture
def model(tiny_artifact: Path) -> Qwen3VL:
    return Qwen3VL.load(tiny_artifact, threads=1, check=False)


@pytest.fixture(scope="module")
def expected(tiny_artifact: Path) -> list[Any]:
    return logits_of(Qwen3VL.load(tiny_artifact, threads=1, check=False))


def test_caches_in_a_device_s_memory_compute_what_arrays_do_bit_for_bit(model: Qwen3VL, expected: list[Any]) -> None:
    model.sessions.memory = DeviceMemory(CPU)
    assert isinstance(model.empty_cache(1), SharedCache)
    for actual, truth in zip(logits_of(model), expected, strict=True):
        np.testing.assert_array_equal(actual, truth)


def test_a_cache_in_a_device_s_memory_is_written_in_place_and_grows(model: Qwen3VL) -> None:
    """The graph writes into the buffers that are there while there is room, and what grew keeps what was read."""
    tokens = BLOCK + 9
    rows = np.random.default_rng(3).standard_normal((1, tokens, model.facts.wide_size)).astype(np.float32)
    positions = np.broadcast_to(np.arange(tokens), (3, 1, tokens))
    contents = []
    for memory in (HostMemory(), DeviceMemory(CPU)):
        model.sessions.memory = memory
        cache = SharedCache.allocate(model.sessions, 1, BLOCK)
        buffers = list(cache.buffers)
        for start, end in ((0, BLOCK - 5), (BLOCK - 5, BLOCK), (BLOCK, tokens)):
            mask = np.ones((1, end), np.int64)
            model.decode(rows[:, start:end], mask, positions[:, :, start:end], cache)
            stayed = {old is new for old, new in zip(buffers, cache.buffers, strict=True)}
            assert stayed == {end <= BLOCK}
        assert cache.capacity == 2 * BLOCK
        contents.append(np.stack(cache.parts(mask)))
    np.testing.assert_array_equal(*contents)


def test_without_a_memory_to_share_a_cache_is_joined(model: Qwen3VL, expected: list[Any]) -> None:
    """A provider of which no memory is known: nothing is written in place, since it might write into a copy."""
    chosen = Device("strange", Provider(HOST))
    model = Qwen3VL(model.artifact, threads=1, device=chosen)
    assert isinstance(model.empty_cache(1), JoinedCache)
    for actual, truth in zip(logits_of(model), expected, strict=True):
        np.testing.assert_allclose(actual, truth, atol=1e-4)
    prepared = model.prepare([as_messages(question) for question in QUESTIONS])
    parts = [Qwen3VL(model.artifact, threads=1, device=device) for device in (chosen, CPU)]
    joined, shared = (
        np.stack(prefill(side.sessions, prepared, no_features(side.sessions), 16)[1].parts(prepared.attention_mask))
        for side in parts
    )
    np.testing.assert_allclose(joined, shared, atol=1e-4)


def test_a_batch_that_a_provider_would_decode_wrongly_is_refused_before_it_is_read(
    model: Qwen3VL, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Qwen3VL(model.artifact, threads=1, device=Device("mine", Provider(HOST, memory="cpu", mixes_lengths=False)))
    same, other = "What is 2+3?", "What is 4+1?"
    assert len(model.generate_batch([same, other], 2)) == 2
    assert model.generate(QUESTIONS[1], 2)
    monkeypatch.setattr(model.sessions, "run", lambda *arguments: pytest.fail("computed"))
    with pytest.raises(InputError, match=r"^device mine: its provider decodes rows of different lengths wrongly"):
        model.generate_batch(QUESTIONS, 2)


@pytest.mark.parametrize(
    "command", [("run", "-p", "Hi"), ("chat",), ("embed", "-t", "Hi"), ("rerank", "-q", "a", "-t", "b")]
)
def test_every_command_that_runs_an_artifact_takes_a_device(command: tuple[str, ...], tmp_path: Path) -> None:
    name, *options = command
    result = invoke(name, tmp_path, *options, "--device", "webgpu:1")
    assert result.exit_code == 2 and "webgpu has no numbers" in result.stderr and result.stderr.count("\n") == 1
    result = invoke(name, tmp_path, *options, "--device", "cpu", "--provider-option", "use_arena")
    assert result.exit_code == 2 and "'use_arena': not KEY=VALUE" in result.stderr
    result = invoke(name, tmp_path, *options, "--provider-option", "use_arena=0")
    assert result.exit_code == 2 and "manifest.json" in result.stderr

"""PyTorch on a GPU, as far as it can be seen without one: refusals, float32, what is moved there, what is streamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parity_tests.harness.sides.pytorch.device import COMPUTING, CPU, exceeds_device, open_device
from parity_tests.harness.sides.pytorch.forward import encode, hide_other_parts
from parity_tests.harness.sides.pytorch.inputs import model_arguments
from parity_tests.harness.sides.pytorch.reference import Reference
from parity_tests.harness.sides.pytorch.reference_cache import scope_of
from parity_tests.harness.sides.pytorch.torch_model import WholeModel, load_model, stream_model
from qwen3vl_export.errors import ParityError

from ...fixtures.paths import TINY
from .test_streaming import GRIDS, inputs_of

META = torch.device("meta")  # stands in for a GPU: tensors that stay behind are not there


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def give_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", ""])
def test_other_devices_are_refused(name: str) -> None:
    with pytest.raises(ParityError, match=r"no device .*Choose cpu, cuda or cuda:1"):
        open_device(name)


def test_without_a_gpu_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParityError, match=r"--device cuda: PyTorch .* sees 0 GPUs\. Install a PyTorch with CUDA"):
        open_device("cuda")


def test_a_gpu_that_is_not_there_is_refused(one_gpu: None) -> None:
    assert open_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ParityError, match=r"sees 1 GPUs\. Choose another"):
        open_device("cuda:1")


def test_products_on_a_gpu_are_float32(one_gpu: None) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    open_device("cuda")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_gpu_s_memory_decides_whether_the_model_is_streamed_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for free, streamed in ((8 << 30, False), (COMPUTING + (8 << 20), True)):
        give_memory(monkeypatch, free)
        assert exceeds_device(gpu, TINY) is streamed
        assert not exceeds_device(CPU, TINY)
    give_memory(monkeypatch, 1 << 20)
    with pytest.raises(ParityError, match=r"takes 4\.\d+ GB of the GPU's memory, 1\.0 MB are free"):
        exceeds_device(gpu, TINY)


def test_results_of_a_gpu_have_keys_of_their_own() -> None:
    assert scope_of({}) == scope_of({}, "cpu") != scope_of({}, "cuda")


def test_weights_and_buffers_are_moved() -> None:
    whole = WholeModel(load_model(TINY), None, META).model
    streamed = stream_model(TINY, device=META)
    assert {value.device for value in (*whole.parameters(), *whole.buffers(), *streamed.model.buffers())} == {META}
    for name, _ in list(whole.named_parameters()):
        assert streamed.parameter(name).device == META


def test_inputs_are_moved() -> None:
    reference = Reference(TINY)
    prompt, config = inputs_of(reference, GRIDS[1]), reference.model.config
    with torch.no_grad():
        features = encode(reference.model, prompt, CPU)
    for given in (None, features):
        arguments = model_arguments(prompt, config, META, given)
        assert set(devices(arguments)) == {META}
    mask = arguments["attention_mask"]
    assert hide_other_parts(config.text_config, mask, torch.zeros(mask.shape[1], device=META)).device == META


def devices(values: Any) -> list[torch.device]:
    """Of all tensors in nested dictionaries and sequences."""
    if isinstance(values, torch.Tensor):
        return [values.device]
    inner = values.values() if hasattr(values, "values") else values if isinstance(values, (list, tuple)) else ()
    return [device for value in inner for device in devices(value)]

"""Where the buffers of a cache are: arrays of numpy, or tensors in a device's memory.

A tensor gets into the memory of a device and back through a session whose graph returns its input, since no other way
of allocating works for every provider and in every release of onnxruntime. What a graph reads and writes in place is
bound by its address (arrays) or as it is (tensors).

Knows bytes and bindings; nothing about what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Floats
from .devices import FLOAT16, FLOAT32, HOST, Device, start_identity

Buffer = Any  # an array, or an `onnxruntime.OrtValue` on a device


class HostMemory:
    """The memory of this process. A buffer is the array itself."""

    def store(self, array: Floats) -> Buffer:
        """A buffer with the values of an array."""
        return array

    def read(self, buffer: Buffer) -> Floats:
        """The values of a buffer."""
        array: Floats = buffer
        return array

    def shape(self, buffer: Buffer) -> tuple[int, ...]:
        return tuple(map(int, buffer.shape))

    def row(self, buffer: Buffer, index: int) -> Buffer:
        """A buffer for one row of another; which of its values it has is left open."""
        return buffer[index : index + 1]

    def join(self, buffer: Buffer, rows: Sequence[Buffer]) -> Buffer:
        """The buffer whose rows these are; `buffer` is that of which they were made."""
        return buffer

    def bind(self, binding: Any, source: str, result: str, buffer: Buffer) -> None:
        """Let a graph read its input `source` from a buffer and write its output `result` there."""
        memory = (HOST, 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        binding.bind_input(source, *memory)
        binding.bind_output(result, *memory)


class DeviceMemory:
    """The memory of a device: what is stored there is copied, and read as a copy. Methods as those of `HostMemory`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._copiers: dict[np.dtype[Any], Any] = {}

    def store(self, array: Floats) -> Buffer:
        binding = self._copier(array.dtype).io_binding()
        array = np.ascontiguousarray(array)
        binding.bind_input("x", HOST, 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("y", self.device.provider.memory, self.device.number)
        return self._copy(array.dtype, binding).get_outputs()[0]

    def read(self, buffer: Buffer) -> Floats:
        dtype = dtype_of(buffer)
        binding = self._copier(dtype).io_binding()
        binding.bind_ortvalue_input("x", buffer)
        binding.bind_output("y", HOST)
        array: Floats = self._copy(dtype, binding).get_outputs()[0].numpy()
        return array

    def shape(self, buffer: Buffer) -> tuple[int, ...]:
        return tuple(map(int, buffer.shape()))

    def row(self, buffer: Buffer, index: int) -> Buffer:
        return self.store(np.zeros((1, *self.shape(buffer)[1:]), dtype_of(buffer)))

    def join(self, buffer: Buffer, rows: Sequence[Buffer]) -> Buffer:
        return self.store(np.concatenate([self.read(row) for row in rows]))

    def bind(self, binding: Any, source: str, result: str, buffer: Buffer) -> None:
        binding.bind_ortvalue_input(source, buffer)
        binding.bind_ortvalue_output(result, buffer)

    def _copier(self, dtype: np.dtype[Any]) -> Any:
        if dtype not in self._copiers:
            self._copiers[dtype] = start_identity(self.device, FLOAT16 if dtype == np.float16 else FLOAT32)
        return self._copiers[dtype]

    def _copy(self, dtype: np.dtype[Any], binding: Any) -> Any:
        binding.synchronize_inputs()
        self._copier(dtype).run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding


def dtype_of(tensor: Any) -> np.dtype[Any]:
    """The numpy dtype of an `onnxruntime.OrtValue` of float32 or float16."""
    return np.dtype(np.float16 if tensor.data_type() == "tensor(float16)" else np.float32)


Memory = HostMemory | DeviceMemory


def memory_of(device: Device) -> Memory | None:
    """The memory in which graphs that run on a device can read and write in place; None if none is known."""
    if device.provider.memory == HOST:
        return HostMemory()
    return DeviceMemory(device) if device.provider.memory else None

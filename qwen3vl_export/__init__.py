"""Qwen3-VL on ONNX, at any image size, proven right."""

__version__ = "0.1.0"

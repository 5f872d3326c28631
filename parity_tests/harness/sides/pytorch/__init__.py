"""PyTorch's side: transformers' model, whole or streamed, and the processors that prepare its inputs."""

"""Parity tests: the exported graphs against PyTorch, and the pictures they are asked about."""

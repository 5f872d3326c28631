"""Thin nn.Module wrappers over the transformers modules, one per graph of the contract."""

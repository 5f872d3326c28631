"""The two sides of a comparison: the artifact in the shipped runtime, and PyTorch."""

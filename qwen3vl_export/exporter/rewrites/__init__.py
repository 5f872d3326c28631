"""Rewrites of the decoder, one idea per module; `optimize.py` lists them."""

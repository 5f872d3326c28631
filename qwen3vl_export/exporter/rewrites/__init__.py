"""Rewrites of the decoder, one idea a module; `optimize.py` lists them."""

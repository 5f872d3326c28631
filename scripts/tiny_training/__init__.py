"""Parts of scripts/train_tiny.py. They make the tiny checkpoint; nothing that is shipped imports them."""

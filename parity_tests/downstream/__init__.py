"""The artifact directory in released runtimes, unmodified, against PyTorch: run for real, not imitated."""

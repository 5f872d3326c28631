"""The project: its docs, scripts and what is shared by all."""

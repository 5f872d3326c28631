"""The commands. Each imports its code when it is called, so that `run` works without the `export` extra."""

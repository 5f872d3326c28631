"""The commands. A command's code is imported when it is called, so that `run` works without the `export` extra."""

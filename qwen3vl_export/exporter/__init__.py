"""From a recipe and a checkpoint to an artifact: read `pipeline.build` first, then `skeletons`."""

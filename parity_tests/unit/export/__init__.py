"""From a recipe and a checkpoint to an artifact."""

"""The demo page apart from its model, on artifacts and a library that stand in for real ones."""

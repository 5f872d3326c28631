"""Tests of fleets: the store, the order of tasks, workers that die, and the page over a store."""

"""Tests of single parts, in a folder for each wing of the project."""

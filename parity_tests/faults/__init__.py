"""Planted faults: each breaks a good artifact, or the runtime around it, in one place; verification must find it."""

"""The checks of a plan, one function each, from a bench to findings."""

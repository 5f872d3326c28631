"""From two arrays to a verdict: measures, tolerances, outcomes."""

"""The artifact's generation settings, as its runtime reads them, against those of the checkpoint in transformers.

All other checks decode greedily and ignore them, but users' answers are sampled and ended by them.
"""

from __future__ import annotations

from dataclasses import fields

from ..judging.outcome import Finding
from ..sides.bench import Bench

STAGE = "sampling"
NAME = "generation-settings"


def compare_settings(bench: Bench) -> Finding:
    """Sampling settings and stop ids; a seed is no setting of a checkpoint."""
    reference, sampling = bench.generation_reference, bench.runtime.sampling
    names = [field.name for field in fields(sampling) if field.name != "seed"]
    values = {name: (getattr(sampling, name), reference.sampling(name)) for name in names}
    different = [f"{name} is {value}, not {truth}" for name, (value, truth) in values.items() if value != truth]
    stop_ids, truth = bench.runtime.stop_ids, set(reference.stop_ids)
    if stop_ids != truth:
        different.append(f"answers end at {sorted(stop_ids)}, not {sorted(truth)}")
    measures = {
        "setting_differences": len(different) - (stop_ids != truth),
        "stop_id_differences": len(stop_ids ^ truth),
    }
    return Finding(measures, compared=len(names) + len(truth), where="; ".join(different))

"""The parity evidence inside an artifact: whether there is any, whether it passed, and whether it is about this one.

Reads `parity.json`, which `verify` writes. Compares nothing and imports neither torch nor parity_tests.
"""

from __future__ import annotations

import json
from typing import Any

from ..artifact import MANIFEST, Artifact
from ..contract import TIERS
from ..errors import ParityError
from ..promise import promised_graphs, unproven

Evidence = dict[str, Any]  # parity.json, parsed


def passing_evidence(artifact: Artifact) -> Evidence:
    """The evidence of a verification of this very artifact that passed.

    Raises:
        ParityError: there is none, it failed, is incomplete, was made for another manifest, or leaves out what the
            recipe promises.
    """
    path = artifact.evidence_path()
    again = f"Prove it: qwen3vl-export verify {artifact.root}"
    if not path.is_file():
        raise ParityError(f"{artifact.root}: has no {path.name}", again)
    try:
        evidence: Evidence = json.loads(path.read_text("utf-8"))
        about, name, planned, checks = (evidence[key] for key in ("manifest_sha256", "artifact", "planned", "checks"))
        failed = [check["id"] for check in checks if not check["passed"]]
        done = [(check["stage"], check["case"]) for check in checks]
        passed = evidence["passed"] is True
    except (ValueError, KeyError, TypeError) as error:
        raise ParityError(f"{path}: is not a parity report ({type(error).__name__})", again) from None
    if about != artifact.manifest_sha256:
        raise ParityError(f"{path}: is about another {MANIFEST} (sha256 {str(about)[:12]}…)", again)
    if name != artifact.manifest.name:
        raise ParityError(f"{path}: is about {name}, not {artifact.manifest.name}", again)
    if failed:
        raise ParityError(f"{path}: {len(failed)} of {planned} checks failed, {failed[0]} first", "Mend it and rebuild")
    if not passed or not checks or len(checks) != planned:
        raise ParityError(f"{path}: {len(checks)} of {planned} checks were carried out", again)
    facts, recipe = artifact.manifest.facts, artifact.manifest.recipe
    for missing in unproven(recipe, promised_graphs(recipe, facts.patch_size), facts.model_type, done):
        raise ParityError(f"{path}: has no check of {missing}, which the recipe promises", again)
    return evidence


def check_tier(artifact: Artifact, evidence: Evidence) -> None:
    """Compare the cases that were run with those the recipe asks for.

    Raises:
        ParityError: fewer were run.
    """
    done, wanted = evidence["matrix"], artifact.manifest.recipe["parity"]["matrix"]
    if TIERS.index(done) < TIERS.index(wanted):
        raise ParityError(
            f"{artifact.evidence_path()}: is of the {done} matrix, the recipe asks for {wanted}",
            f"Prove it: qwen3vl-export verify {artifact.root}",
        )

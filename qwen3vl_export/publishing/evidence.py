"""Whether an artifact may be published: its evidence exists, passed, and is about this very artifact.

Reads `parity.json`, which `verify` writes. Measures nothing and imports neither torch nor parity_tests.
"""

from __future__ import annotations

from ..artifact import Artifact
from ..contract import TIERS_INCLUDED
from ..errors import UnprovenError
from ..evidence import Evidence
from ..json_form import from_json
from ..manifest import MANIFEST
from ..promise import missing_checks, promised_graphs


def passing_evidence(artifact: Artifact) -> Evidence:
    """Read the evidence of an artifact, which must have passed.

    Raises:
        UnprovenError: there is none, or it failed, is incomplete, is about another manifest, or lacks a check that the
            recipe promises.
    """
    path = artifact.evidence_path()
    advice = f"Prove it: qwen3vl-export verify {artifact.root}"
    if not path.is_file():
        raise UnprovenError(f"{artifact.root}: has no {path.name}", advice)
    try:
        evidence = from_json(Evidence, path.read_bytes())
    except ValueError as error:
        raise UnprovenError(f"{path}: is not a parity report ({error})", advice) from None
    checks, planned, failed = evidence.checks, evidence.planned, evidence.failures
    if evidence.manifest_sha256 != artifact.manifest_sha256:
        raise UnprovenError(f"{path}: is about another {MANIFEST} (sha256 {evidence.manifest_sha256[:12]}…)", advice)
    if evidence.artifact != artifact.manifest.name:
        raise UnprovenError(f"{path}: is about {evidence.artifact}, not {artifact.manifest.name}", advice)
    if failed:
        raise UnprovenError(
            f"{path}: {len(failed)} of {planned} checks failed, {failed[0].id} first", "Mend it and rebuild"
        )
    if not evidence.passed or not checks or len(checks) != planned:
        raise UnprovenError(f"{path}: {len(checks)} of {planned} checks were carried out", advice)
    done = [(check.stage, check.case) for check in checks]
    facts, recipe = artifact.manifest.facts, artifact.manifest.recipe
    for missing in missing_checks(recipe, promised_graphs(recipe, facts.patch_size), facts.model_type, done):
        raise UnprovenError(f"{path}: has no check of {missing}, which the recipe promises", advice)
    return evidence


def check_tier(artifact: Artifact, evidence: Evidence) -> None:
    """Check that the cases were those the recipe asks for.

    Raises:
        UnprovenError: they do not include those.
    """
    required = artifact.manifest.recipe["parity"]["matrix"]
    if required not in TIERS_INCLUDED[evidence.matrix]:
        raise UnprovenError(
            f"{artifact.evidence_path()}: is of the {evidence.matrix} matrix, the recipe asks for {required}",
            f"Prove it: qwen3vl-export verify {artifact.root}",
        )

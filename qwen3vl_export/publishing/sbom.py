"""The bill of materials of an artifact, a CycloneDX 1.6 ML-BOM: its sources and tools, by digest.

Made from the manifest alone, so that equal artifacts give equal bytes: no date, no serial number.
Format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artifact import Artifact

SBOM = "sbom.cdx.json"


def sbom(artifact: Artifact, digests: Mapping[str, str]) -> dict[str, Any]:
    """The document.

    Args:
        digests: sha256 of the artifact's files, by name.
    """
    manifest = artifact.manifest
    root = f"artifact:{manifest.name}"
    checkpoint, tools = manifest.checkpoint, dict(manifest.tools)
    version = tools.pop("qwen3vl-export")
    adapters = checkpoint.get("adapters", [])
    sources = [model(checkpoint, "checkpoint"), *(model(adapter, f"adapter {n}") for n, adapter in enumerate(adapters))]
    libraries = [
        {"type": "library", "bom-ref": f"pkg:pypi/{name}@{release}", "name": name, "version": release}
        | ({"purl": f"pkg:pypi/{name}@{release}"} if name != "python" else {})
        for name, release in sorted(tools.items())
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "qwen3vl-export", "version": version}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": root,
                "name": manifest.name,
                "version": artifact.manifest_sha256,
                "hashes": [sha256(artifact.manifest_sha256)],
                "modelCard": {
                    "modelParameters": {
                        "task": "image-text-to-text",
                        "architectureFamily": "qwen3_vl",
                        "modelArchitecture": manifest.facts.model_type,
                        "inputs": [{"format": "text"}, {"format": "image"}],
                        "outputs": [{"format": "text"}],
                    }
                },
                "components": [file_component(name, digest) for name, digest in sorted(digests.items())],
            },
        },
        "components": [*sources, *libraries],
        "dependencies": [{"ref": root, "dependsOn": [component["bom-ref"] for component in [*sources, *libraries]]}],
    }


def model(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The checkpoint or one of its adapters, as the manifest records it."""
    return {
        "type": "machine-learning-model",
        "bom-ref": f"{kind}:{record['source']}",
        "name": record["source"],
        "version": record["revision"],
        "components": [file_component(name, digest, f"{kind}/") for name, digest in sorted(record["files"].items())],
    }


def file_component(name: str, digest: str, prefix: str = "") -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{prefix}{name}", "name": name, "hashes": [sha256(digest)]}


def sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}

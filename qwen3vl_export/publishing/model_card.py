"""The model card: README.md of a published artifact, made from its manifest and its parity evidence.

Every number in it is measured: sizes come from the manifest, differences and times from `parity.json`. The snippets are
those of `snippets.py`; a test takes them out of a card and runs them. Knows nothing about publishing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..artifact import STATEMENT, Artifact
from ..console import format_size
from ..contract import EMBEDDING, RERANKER, TEXT
from ..evidence import SIGNS, Evidence, Rule
from ..evidence.answers import EXAM, lines
from ..evidence.tasks import ALL, TaskScore, percent, points
from ..packaging import RUNTIMES
from ..packaging.browsers import browser_support
from ..promise import ONNXRUNTIME, TRANSFORMERS_JS
from .heatmap import HEATMAP
from .licence import Licence
from .sbom import SBOM
from .snippets import SNIPPETS

CARD = "README.md"

PIPELINES = {TEXT: "image-text-to-text", EMBEDDING: "feature-extraction", RERANKER: "text-ranking"}  # tags of the Hub


def model_card(proofs: Sequence[tuple[Artifact, Evidence]], repository: str, licence: Licence) -> str:
    """The card's text.

    Args:
        proofs: the artifact in each of its precisions, the default one first, with the evidence of each.
        repository: `org/name`, for the snippets.
        licence: the checkpoint's.
    """
    artifact = proofs[0][0]
    return "\n".join(
        [
            *header(artifact, licence),
            *introduction(artifact),
            *precisions(proofs),
            *usage(artifact, repository),
            *browsers(artifact),
            *(line for proof in proofs for line in parity(*proof)),
            *sizes(artifact),
            *(line for proof in proofs for line in speed(*proof)),
            *limits(artifact),
            *origin(artifact, licence),
        ]
    )


def header(artifact: Artifact, licence: Licence) -> Iterator[str]:
    source, revision = (artifact.manifest.checkpoint[key] for key in ("source", "revision"))
    terms = (f"{key}: {as_yaml(value)}" for key, value in licence.front_matter.items())
    yield from ("---", *terms, f"pipeline_tag: {PIPELINES[artifact.manifest.facts.head]}")
    if TRANSFORMERS_JS in artifact.manifest.recipe["packaging"]["runtimes"]:
        yield "library_name: transformers.js"
    if revision != "local":
        yield f"base_model: {source}"
    yield from (f"tags: [onnx, {', '.join(artifact.manifest.recipe['packaging']['runtimes'])}, qwen3_vl]", "---", "")


def as_yaml(value: str) -> str:
    """A string of the front matter: a word as it is, anything else in quotes."""
    return value if re.fullmatch(r"[A-Za-z][\w.-]*", value) else json.dumps(value, ensure_ascii=False)


def introduction(artifact: Artifact) -> Iterator[str]:
    manifest = artifact.manifest
    source, revision = manifest.checkpoint["source"], manifest.checkpoint["revision"]
    recipe = manifest.recipe
    sized = {"dynamic": "pictures of any size and any number"}.get(recipe["vision"]["grid"], "pictures of fixed sizes")
    runtimes = ", ".join(recipe["packaging"]["runtimes"])
    yield from (f"# {manifest.name}", "")
    adapters = "".join(
        f" with the LoRA adapter `{adapter['source']}` at revision `{adapter['revision']}`"
        for adapter in manifest.checkpoint.get("adapters", [])
    )
    yield f"`{source}` at revision `{revision}`{adapters} as ONNX, for {sized}:"
    yield f"weights in {recipe['dtype']}{quantized(recipe)},"
    yield f"target `{recipe['target']}`. The directory loads unmodified in {runtimes}."
    yield "Built by qwen3vl-export, and compared with PyTorch stage by stage."
    if recipe["packaging"].get("provider") == "cuda":
        yield "It is for NVIDIA GPUs. All of this was measured on a CPU; it was never run on a real GPU."
    yield ""


def quantized(recipe: dict[str, Any] | Any) -> str:
    """`, decoder_model_merged int4`, or nothing."""
    plans = {graph: plan["method"] for graph, plan in recipe["quantization"].items() if plan["method"] != "none"}
    return "".join(
        f", {graph} {'in the integers of its source' if method == 'source' else method}"
        for graph, method in plans.items()
    )


def precisions(proofs: Sequence[tuple[Artifact, Evidence]]) -> Iterator[str]:
    """A table of the precisions, if there is more than one."""
    if len(proofs) == 1:
        return
    yield from ("## Precisions", "")
    yield "Names are `dtype` in transformers.js and `precision` of `Qwen3VL.load`. onnxruntime-genai loads the default."
    yield from ("", "| name | weights | graphs and weights | checks passed |", "|---|---|--:|--:|")
    for artifact, evidence in proofs:
        manifest = artifact.manifest
        files = {file for graph in manifest.graphs.values() for file in (graph["file"], *graph["data"])}
        total = format_size(sum(manifest.files[file].bytes for file in files))
        weights = f"{manifest.recipe['dtype']}{quantized(manifest.recipe)}"
        yield f"| {name_of(artifact.precision)} | {weights} | {total} | {len(evidence.checks)} of {evidence.planned} |"
    if names := artifact.manifest.second_names:
        yield from ("", "Stored once under two names: " + ", ".join(f"`{b}` is `{a}`" for b, a in names.items()) + ".")
    yield ""


def usage(artifact: Artifact, repository: str) -> Iterator[str]:
    yield from ("## Use", "")
    for runtime in artifact.manifest.recipe["packaging"]["runtimes"]:
        language, snippet = SNIPPETS[runtime, artifact.manifest.facts.head]
        oldest = f"{artifact.manifest.min_onnxruntime} or newer"
        releases = oldest if runtime == ONNXRUNTIME else RUNTIMES[runtime].releases
        yield from (f"### {runtime} {releases}", "", f"```{language}")
        yield from (*snippet.format(repository=repository).splitlines(), "```", "")
    yield from ("Check what you got, against the hashes and the evidence inside:", "", "```console")
    yield from (f"$ qwen3vl-export fetch hf://{repository}", "```", "")


def browsers(artifact: Artifact) -> Iterator[str]:
    """What a browser loads, if the artifact is packaged for one."""
    rows = {precision.precision: browser_support(precision) for precision in artifact.every_precision}
    if not rows[""]:
        return
    yield from ("## In a browser", "", f"| precision | {' | '.join(rows[''])} |", "|---|---|---|")
    yield from (f"| {name_of(name)} | {' | '.join(answers.values())} |" for name, answers in rows.items())
    yield from ("", "Compared with numbers of a CPU on adapters in software. Never run on a real GPU.", "")


def name_of(precision: str) -> str:
    """A precision as a table names it."""
    return f"`{precision}`" if precision else "default (`fp32` in transformers.js)"


def parity(artifact: Artifact, evidence: Evidence) -> Iterator[str]:
    versions = evidence.versions
    yield from (f"## Parity with PyTorch{precision_suffix(artifact)}", "")
    counts = f"{len(evidence.checks)} of {evidence.planned} checks of the {evidence.matrix} matrix"
    yield f"{counts} pass against transformers"
    yield f"{versions['transformers']} on torch {versions['torch']}, with onnxruntime {versions['onnxruntime']};"
    yield f"near-ties: {len(evidence.near_ties)}. Evidence: `{artifact.evidence_path().name}`, about the manifest"
    yield from (
        f"with sha256 `{artifact.manifest_sha256}`.",
        "",
        *(f"- {line}" for line in lines(evidence)),
        "",
        "| stage | checks | worst of all checks (limit) |",
        "|---|--:|---|",
    )
    for stage, entry in evidence.summary.items():
        if entry:
            rules = {rule.measure: rule for rule in evidence.profile.rules.get(stage, ())}
            worst = [measured(rules[measure], value) for measure, value in entry.worst.items() if measure in rules]
            yield f"| {stage} | {entry.checks} | {', '.join(worst)} |"
    yield from (
        "",
        *(line for name, task in (evidence.tasks or {}).items() for line in task_table(name, task)),
        f"![largest difference of every check, in percent of its limit]({artifact.evidence_path(HEATMAP).name})",
        "",
    )


def task_table(name: str, task: TaskScore) -> Iterator[str]:
    """The scores of a task by kind of question."""
    what = "Answers to the exam" if name == EXAM else f"Answers to the task `{name}`"
    digest = f" (questions and pictures: sha256 `{task.sha256}`)" if task.sha256 else ""
    yield from (f"{what}, both sides asked alike{digest}; intervals at 95 %:", "")
    yield "| asks | questions | score | in PyTorch | difference | same answer |"
    yield "|---|--:|--:|--:|--:|--:|"
    for kind, score in (*task.kinds.items(), *([(ALL, task.every)] if len(task.kinds) > 1 else [])):
        scores = " | ".join(map(percent, (score.score.value, score.reference_score.value)))
        same = percent(score.agreement.value)
        yield f"| {kind} | {score.questions:,} | {scores} | {points(score.difference)} | {same} |"
    yield ""


def measured(rule: Rule, value: float | None) -> str:
    """`max abs 2.8e-05 (≤ 0.0001)`."""
    text = "not measured" if value is None else f"{value:.3g}"
    return f"{rule.measure.replace('_', ' ')} {text} ({SIGNS[rule.kind]} {rule.limit:.5g})"


def sizes(artifact: Artifact) -> Iterator[str]:
    manifest, files = artifact.manifest, artifact.manifest.files
    yield from ("## Sizes", "", "| file | size |", "|---|--:|")
    yield from (f"| `{name}` | {format_size(files[name].bytes)} |" for name in files if name.startswith("onnx/"))
    yield from (f"| all {len(files)} files | {format_size(manifest.bytes)} |", "")


def precision_suffix(artifact: Artifact) -> str:
    """` in q4`, or nothing for the default precision."""
    return f" in {artifact.precision}" if artifact.precision else ""


def speed(artifact: Artifact, evidence: Evidence) -> Iterator[str]:
    """The speed of the runtime during the verification, which is no benchmark."""
    if artifact.manifest.facts.head != TEXT:
        return  # what is measured is answering
    machine, clock = evidence.hardware, evidence.speed
    where = f"{machine.processor}, {machine.cores} cores" if machine.processor else f"{machine.cores} cores"
    yield from (f"## Speed{precision_suffix(artifact)}", "")
    if clock is None:
        yield f"Not measured: the verification ran spread over several processes, on {where}."
    else:
        threads = clock.threads or machine.cores
        prompts, answers = map(rate, (clock.prompt_rate, clock.new_rate))
        yield f"While verifying, on {where}, {threads} thread{'' if threads == 1 else 's'} to an operator:"
        yield f"{prompts} tokens/s reading prompts with their pictures, {answers} tokens/s"
        yield f"answering, over {clock.answers} answers. Batches count every row's tokens. No benchmark: whatever"
        yield "else the machine did is in these numbers."
    yield ""


def rate(value: float) -> str:
    """Tokens a second: `1,870`, `4.25`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def limits(artifact: Artifact) -> Iterator[str]:
    yield from ("## Known limits", "")
    for runtime in artifact.manifest.recipe["packaging"]["runtimes"]:
        yield from (f"- {runtime}: {limit}" for limit in RUNTIMES[runtime].limits)
    yield from ("- What the model itself can and cannot do is its checkpoint's.", "")


def origin(artifact: Artifact, licence: Licence) -> Iterator[str]:
    yield from ("## Licence and origin", "", f"{terms_of(licence)}: the checkpoint's.", "")
    yield f"`{STATEMENT}` (SLSA provenance) names every file with its sha256, `{SBOM}` (CycloneDX ML-BOM) what it was"
    yield from ("made from.", "")


def terms_of(licence: Licence) -> str:
    """`` `apache-2.0`, see `LICENSE` ``; or where the licence can be read, if the checkpoint's card says so."""
    name = licence.front_matter.get("license_name", licence.front_matter["license"])
    place = f"`{licence.file}`" if licence.file else licence.front_matter.get("license_link", "")
    return f"`{name}`, see {place}" if place else f"`{name}`"

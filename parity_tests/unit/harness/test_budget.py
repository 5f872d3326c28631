"""Budgets of a verification: what it takes in memory, disk and time is known before, kept, or refused in one line."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.harness import rounds, verify
from parity_tests.harness.budget import estimate as estimate_module
from parity_tests.harness.budget import machine, rates, resources
from parity_tests.harness.budget.activations import comparing_of, need_of, outputs_of, results_of
from parity_tests.harness.budget.cost import CostModel
from parity_tests.harness.budget.cut import promised_cases
from parity_tests.harness.budget.estimate import CONVERT, Estimate, estimate, opened_again, seconds_of_opening
from parity_tests.harness.budget.resources import Resources, must_stream, should_stream
from parity_tests.harness.budget.sizes import Call, CaseSizes, ModelSizes
from parity_tests.harness.budget.split import split_in_order
from parity_tests.harness.budget.table import describe
from parity_tests.harness.plan import Plan, Subject, cases_of, plan
from parity_tests.harness.rounds import groups_on_disk
from parity_tests.harness.sides.bench import Bench
from parity_tests.harness.sides.pytorch.attention import MOST_SCORES
from parity_tests.harness.sides.pytorch.device import CPU
from parity_tests.harness.sides.pytorch.reference import SMALL_MODEL
from parity_tests.harness.sides.pytorch.torch_model import read_config
from qwen3vl_export.console import format_duration, parse_duration, parse_size
from qwen3vl_export.contract import DECODER
from qwen3vl_export.errors import ParityError
from qwen3vl_export.promise import DEQUANTIZED, missing_checks
from qwen3vl_export.recipe import load_recipe
from qwen3vl_export.runtime.cache import SharedCache

from ...fixtures.commands import invoke
from ...fixtures.paths import TINY

MODEL = replace(ModelSizes.of(read_config(TINY)[0]), vocabulary=151_936)
PICTURE = CaseSizes("picture", rows=1, tokens=100, compared=100, forced=256, new=64, frames=(256,))


@pytest.fixture(scope="module")
def bench(tiny_artifact: Path) -> Bench:
    return verify.open_bench(tiny_artifact, "quick")


@pytest.fixture(scope="module")
def needed(bench: Bench) -> Resources:
    assert bench.resources is not None
    return bench.resources


@pytest.fixture(scope="module")
def estimated(bench: Bench, needed: Resources) -> Estimate:
    return estimate(bench, plan("quick", Subject.of_manifest(bench.artifact.manifest)), needed)


def write_group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


# What there is.


def test_memory_is_what_the_tightest_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2, a container's own root, and version 1; the kernel's caches of files count as free."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    whole = machine.free_memory()
    (tmp_path / "membership").write_text("0::/jobs/run\n")
    assert machine.free_memory() == pytest.approx(whole, rel=0.2)  # no such files
    write_group(tmp_path / "jobs" / "run", memory__max="max", memory__current=5 << 20)
    write_group(tmp_path / "jobs", memory__max=100 << 20, memory__current=70 << 20)
    assert machine.free_memory() == 30 << 20
    write_group(tmp_path / "jobs", memory__stat=f"anon 1\nactive_file {3 << 20}\ninactive_file {4 << 20}")
    assert machine.free_memory() == 37 << 20
    (tmp_path / "membership").write_text("0::/outside/of/the/container\n")
    write_group(tmp_path, memory__max=50 << 20, memory__current=60 << 20)
    assert machine.free_memory() == 0
    (tmp_path / "membership").write_text("5:cpu:/jobs\n4:memory:/job\n0::/unknown\n")
    write_group(tmp_path, memory__max="max")
    write_group(
        tmp_path / "memory" / "job", memory__limit_in_bytes=90 << 20, memory__usage_in_bytes=30 << 20, memory__stat=""
    )
    assert machine.free_memory() == 60 << 20


def test_without_a_budget_a_reserve_is_left_to_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.free_memory() > 0 and machine.resident_memory() > 0
    for free, left in ((8 << 30, 7 << 30), (2 << 30, 3 << 29)):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        assert machine.memory_left(None) == left


def test_a_budget_is_all_that_the_process_takes_and_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "resident_memory", lambda: 1 << 30)
    monkeypatch.setattr(machine, "free_memory", lambda: 6 << 30)
    assert machine.memory_left(4 << 30) == 3 << 30
    assert machine.memory_left(64 << 30) == 6 << 30


# What cases take.


@pytest.mark.parametrize("name", ["tokens", "compared", "forced", "new", "frames", "rows"])
def test_a_case_takes_more_of_everything_it_has_more_of(name: str) -> None:
    doubled = replace(PICTURE, **{name: getattr(PICTURE, name) * 2})
    if name == "frames":
        doubled = replace(PICTURE, frames=(512,))
    assert comparing_of(MODEL, doubled) >= comparing_of(MODEL, PICTURE)
    assert results_of(MODEL, doubled) > results_of(MODEL, PICTURE)
    assert need_of(MODEL, doubled.joined).total > need_of(MODEL, PICTURE.joined).total


def test_prompts_are_as_long_as_their_estimate(bench: Bench, needed: Resources) -> None:
    """In patches to the last one; in tokens but for timestamps, which are rounded up."""
    for case in (case for case in bench.cases if case.name in needed.cases and not case.is_vision_only):
        sizes, prepared = needed.cases[case.name], bench.prepared(case)
        assert sum(sizes.frames) == len(prepared.pixel_values), case.name
        rows, tokens = prepared.input_ids.shape
        assert sizes.rows == rows and tokens - 2 <= sizes.tokens <= 1.1 * tokens + 16, case.name


@pytest.mark.parametrize("tokens", [10, 256, 300])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_held_between_pieces_has_the_room_that_the_cache_makes(bench: Bench, tokens: int, rows: int) -> None:
    cache = bench.runtime.empty_cache(rows)
    assert isinstance(cache, SharedCache)
    cache.reserve(tokens)
    buffers = sum(cache.memory.read(buffer).nbytes for buffer in cache.buffers)
    passed = 2 * 4 * rows * tokens * bench.artifact.manifest.facts.wide_size
    assert bench.held_bytes(np.ones((rows, tokens), np.int64)) == buffers + passed


def test_a_case_without_a_model_takes_its_pixels_and_no_result() -> None:
    page = replace(PICTURE, pixels_only=True)
    assert results_of(MODEL, page) == outputs_of(MODEL, page) == need_of(MODEL, page.joined).total == 0
    assert comparing_of(MODEL, PICTURE) > comparing_of(MODEL, page) >= 4 * 256 * MODEL.patch_dim


def test_scores_count_as_long_as_they_are_stored() -> None:
    """Above a bound, attention stores none: a longer prompt may take less."""
    side = math.isqrt(MOST_SCORES // MODEL.heads)
    within, beyond = (need_of(MODEL, Call(1, tokens, 1)).passing for tokens in (side, side + 1))
    assert within > 3 * 4 * 0.99 * MOST_SCORES > beyond


def test_groups_are_in_order_within_the_budget_and_never_empty() -> None:
    def fits(group: list[int]) -> bool:
        return sum(group) <= 10

    assert split_in_order([4, 5, 3, 20, 1, 9, 1], fits) == [[4, 5], [3], [20], [1, 9], [1]]
    assert split_in_order([], fits) == []


# Memory and disk.


def test_memory_decides_whether_pytorch_is_streamed(
    bench: Bench, needed: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = needed.needs
    assert needs.streamed < needs.whole
    for left, streamed in ((needs.whole, False), (needs.whole - 1, True), (needs.streamed, True)):
        monkeypatch.setattr(resources, "memory_left", lambda _, left=left: left)
        assert must_stream(bench.artifact, needed) is streamed
    monkeypatch.setattr(resources, "memory_left", lambda _: needs.streamed - 1)
    with pytest.raises(ParityError, match=r"takes \S+ MB of memory \(the artifact .*\), \S+ MB are left\. .*--memory"):
        must_stream(bench.artifact, needed)


def test_a_large_model_is_streamed_whatever_memory_there_is(needed: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its results have no room: then it is computed as a whole."""
    assert not should_stream(needed)
    large = replace(needed, needs=replace(needed.needs, weights=4 * SMALL_MODEL))
    assert should_stream(large)
    monkeypatch.setattr(resources, "free_disk", lambda _: 1 << 20)
    assert not should_stream(large)


@pytest.mark.parametrize(("device", "streamed"), [(CPU, True), (torch.device("cuda"), False)])
def test_only_a_processor_is_sooner_done_in_modules(
    device: torch.device, streamed: bool, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "should_stream", lambda _: True)
    monkeypatch.setattr(verify, "open_device", lambda _: device)
    monkeypatch.setattr(verify, "exceeds_device", lambda *_: False)
    assert verify.open_bench(tiny_artifact, "quick", cache=tmp_path).reference.streamed is streamed


def test_too_little_disk_for_the_results_of_a_case_is_refused(
    bench: Bench, needed: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "memory_left", lambda _: needed.needs.streamed)
    monkeypatch.setattr(resources, "free_disk", lambda _: 1 << 20)
    with pytest.raises(ParityError, match=r"results of \S+ take \S+ MB of disk, 1\.0 MB are free\. .*--cache DIR"):
        must_stream(bench.artifact, needed)


def test_cases_whose_results_do_not_fit_together_go_one_group_after_another(
    bench: Bench, needed: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = plan("quick", Subject.of_manifest(bench.artifact.manifest)).checks
    assert groups_on_disk(bench, checks) == [checks]  # nothing waits on disk
    monkeypatch.setattr(bench.reference, "streamed", True)
    free = needed.results_of(needed.cases) // 2
    monkeypatch.setattr(rounds, "free_disk", lambda _: free)
    groups = groups_on_disk(bench, checks)
    assert len(groups) > 1 and [check for group in groups for check in group] == list(checks)
    for group in groups:
        assert needed.results_of({check.case.name for check in group if check.case}) <= free


def test_results_of_pytorch_stay_within_their_store(needed: Resources) -> None:
    names = [*needed.cases]
    assert needed.fit_on_disk(names, free=1 << 40)
    assert not replace(needed, most_results=1 << 20).fit_on_disk(names, free=1 << 40)


# Time.


def cut(bench: Bench, estimated: Estimate, seconds: float) -> Plan:
    return estimated.within(seconds, Subject.of_manifest(bench.artifact.manifest)).planned


def test_every_check_has_an_estimate_that_adds_up(estimated: Estimate) -> None:
    assert set(estimated.checks) == {check.id for check in estimated.planned.checks}
    assert all(check.total > 0 for check in estimated.checks.values())
    parts = sum(check.total for check in estimated.checks.values()) + estimated.fixed.total
    assert estimated.seconds.total == pytest.approx(parts)


@pytest.mark.parametrize("rounding", [False, True])
def test_a_copy_that_rounds_no_activations_takes_time_of_its_own(
    rounding: bool, bench: Bench, needed: Resources, estimated: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "rounding_graphs", lambda *_: {DECODER} if rounding else set())
    measured = rates.measure_rates(bench.artifact, bench.checkpoint, MODEL, threads=1)
    assert (measured.in_float is not None) is rounding
    costs = CostModel(MODEL, measured, streamed=True)
    checks = [check for check in estimated.planned.checks if check.stage in ("decoder", "decode", "chunked")]
    for check in checks:
        copied = costs.of(replace(check, stage=f"{DEQUANTIZED}{check.stage}"), needed.cases)
        assert (copied.artifact > 0) is rounding
    assert len({check.stage for check in checks}) == 3


def test_pieces_that_have_no_room_are_opened_at_each_token(
    needed: Resources, estimated: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [case.name for case in cases_of(estimated.planned)]
    tokens = max(needed.cases[name].new for name in names)
    for missing in (0, 1000):
        monkeypatch.setattr(Resources, "piece", lambda self, missing=missing: self.needs.decoding - missing)
        assert opened_again(needed, names) == tokens * missing
    monkeypatch.setattr(Resources, "held", lambda self: 0)  # each case goes alone
    assert opened_again(needed, names) == missing * sum(needed.cases[name].new for name in names)


def test_pieces_are_read_from_the_disk_again_only_if_memory_does_not_hold_the_artifact(
    estimated: Estimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {}
    for free in (1000, 999):
        monkeypatch.setattr(estimate_module, "free_memory", lambda free=free: free)
        seconds[free] = seconds_of_opening(estimated.rates, weights=1000, times=2, again=5000)
    assert seconds[999] - seconds[1000] == pytest.approx(5000 * estimated.rates.read)
    assert seconds[1000] == pytest.approx(2000 * estimated.rates.read + 7000 * CONVERT)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_budget_of_time_leaves_out_cases_and_names_them(bench: Bench, estimated: Estimate, share: float) -> None:
    """Whole cases, none that would still fit in order, and never what the recipe promises."""
    subject = Subject.of_manifest(bench.artifact.manifest)
    promised = promised_cases(estimated.planned, subject)
    checks = [check for check in estimated.planned.checks if check.case is None or check.case.name in promised]
    least = sum(estimated.checks[check.id].total for check in checks) + estimated.fixed.total
    seconds = least + share * (estimated.seconds.total - least) + 0.001
    planned = cut(bench, estimated, seconds)
    shorter = replace(estimated, planned=planned)
    assert shorter.seconds.total <= seconds
    kept = {case.name for case in cases_of(planned)}
    every = {case.name for case in cases_of(estimated.planned)}
    new = set(planned.left_out) - set(estimated.planned.left_out)
    assert new == every - kept and new
    assert all(planned.left_out[name].startswith("left out for time: about ") for name in new)
    assert planned.checks == tuple(
        check for check in estimated.planned.checks if check.case is None or check.case.name in kept
    )
    done = [(check.stage, check.name) for check in planned.checks]
    assert not [*missing_checks(subject.recipe, subject.graphs, subject.model_type, done)]


def test_with_enough_time_nothing_is_left_out(bench: Bench, estimated: Estimate) -> None:
    assert cut(bench, estimated, estimated.seconds.total + 1) == estimated.planned


def test_time_too_short_for_the_promise_is_refused(bench: Bench, estimated: Estimate) -> None:
    with pytest.raises(ParityError, match=r"the recipe promises takes about \S+ s, --time is 1 s\. .*--plan"):
        cut(bench, estimated, 1.0)


def test_an_encoder_bound_to_a_size_keeps_its_case() -> None:
    subject = Subject.of_recipe(load_recipe("tiny-buckets"))
    planned = plan("quick", subject)
    kept = promised_cases(planned, subject)
    assert {name for name in (case.name for case in cases_of(planned)) if name.startswith("grid-")} <= kept
    assert len(kept) < len(cases_of(planned))


# On the command line.


def test_a_plan_is_shown_and_nothing_is_verified(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "run", None)
    artifact = tmp_path / "tiny"
    shutil.copytree(tiny_artifact, artifact)
    before = {path: path.stat().st_mtime_ns for path in artifact.rglob("*")}
    result = invoke("verify", artifact, "--matrix", "quick", "--plan")
    assert result.exit_code == 0, result.stderr
    for text in ("as-traced-24x24", "checks of 17 cases", "time: about", "memory:", "not checked: accuracy"):
        assert text in result.stdout
    assert {path: path.stat().st_mtime_ns for path in artifact.rglob("*")} == before


def test_a_plan_says_that_pytorch_is_streamed(bench: Bench, estimated: Estimate) -> None:
    streamed = replace(estimated, streamed=True, passes=2, disk=1 << 20)
    assert any("1.0 MB of results" in line and "2 passes" in line for line in describe(streamed, "tiny"))


def test_what_was_left_out_is_in_the_report(bench: Bench, estimated: Estimate) -> None:
    left_out = {"as-traced-24x24": "left out for time: about 9 s"}
    planned = replace(estimated.planned, checks=estimated.planned.checks[:1], left_out=left_out)
    assert verify.run(bench, planned=planned).evidence().left_out == left_out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--memory", "8", "write 8GB or 500MB"),
        ("--memory", "-1GB", "write 8GB or 500MB"),
        ("--memory", "1e999GB", "write 8GB or 500MB"),
        ("--memory", f"{'9' * 400}GB", "write 8GB or 500MB"),
        ("--time", "30", "write 30min or 1h30min"),
        ("--time", "0min", "write 30min or 1h30min"),
        ("--time", "min", "write 30min or 1h30min"),
        ("--time", "-5min", "write 30min or 1h30min"),
        ("--time", f"{'9' * 400}h", "write 30min or 1h30min"),
    ],
)
def test_what_is_no_size_or_time_is_a_usage_error(option: str, value: str, message: str) -> None:
    result = invoke("verify", "artifacts/any", option, value)
    assert result.exit_code == 2 and message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("plan_only", [[], ["--plan"]])
def test_a_memory_that_nothing_fits_in_is_refused_before_anything_starts(
    tiny_artifact: Path, plan_only: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "run", None)
    result = invoke("verify", tiny_artifact, "--memory", "10MB", *plan_only)
    assert result.exit_code == 2
    assert re.fullmatch(r"error: \S+: verifying it takes \S+ MB of memory .*, 0 B are left\. .*\n", result.stderr)


def test_sizes_and_durations_are_written_as_they_are_shown() -> None:
    assert parse_size("8GB") == 8 << 30
    assert parse_size("1.5 gb") == 3 << 29
    assert parse_size("512MiB") == 512 << 20
    for text in ("8", "GB", "-1GB", "0GB", "8PB", ""):
        with pytest.raises(ValueError, match="write 8GB"):
            parse_size(text)
    for seconds in (1, 59, 60, 93, 3600, 100_000):
        assert parse_duration(format_duration(seconds)) == seconds
    assert parse_duration("1h 30min") == parse_duration("90 MIN") == parse_duration("1.5h") == 5400
    for text in ("30", "h", "30 sec", "1min1h", "0s", ""):
        with pytest.raises(ValueError, match="write 30min"):
            parse_duration(text)

"""Records a fleet for real: six tiny recipes x standard matrix on scheduler and three workers, then again with faults.

    python scripts/record_fleet.py [--matrix quick] [--work DIR]          writes docs/bench/fleet.json

Every process is its own, on loopback. First each recipe is built alone, then the fleet builds and verifies them, then
it is asked again and must make nothing. The second store has the first one's estimates and is for faults, in one run:
kill -9 of a worker in a build, of another in a verification, the scheduler restarted, the store away for 20 s, and a
worker whose disk is full (a tmpfs of 1 MB where this may be mounted, else a limit on the size of files). Each run's
artifacts are compared with the single builds, byte by byte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from parity_tests.fixtures.fleet_processes import Processes, cluster, wait_until
from parity_tests.fixtures.paths import ROOT
from qwen3vl_export.artifact import PARITY
from qwen3vl_export.evidence import Evidence, Summary
from qwen3vl_export.hash_cache import sha256_file
from qwen3vl_export.json_form import from_json
from qwen3vl_export.manifest import MANIFEST

RECIPES = ("tiny", "tiny-portable", "tiny-fp16", "tiny-bf16", "tiny-int8", "tiny-int4")
WORKERS = ("w0", "w1", "w2")
AWAY = 20.0  # seconds
BETWEEN = 5.0  # seconds between faults
RECORD = ROOT / "docs" / "bench" / "fleet.json"
MANY = 1800.0  # seconds until a step is given up


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "qwen3vl_export", *arguments]
    return subprocess.Popen(line, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def done(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate()
    return process.returncode, output


def fleet(store: Path, log: Path, processes: Processes, matrix: str) -> subprocess.Popen[str]:
    options = ["--store", str(store), "--matrix", matrix, "--scheduler", processes.address, "--log", str(log)]
    return command("fleet", "run", *RECIPES, *options, cwd=ROOT)


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []


def differing(singles: Path, store: Path) -> list[str]:
    """Files of artifacts in the store that are not those of the single builds."""
    found = []
    for name in RECIPES:
        (stored,) = store.glob(f"artifacts/{name}-{'[0-9a-f]' * 20}")
        files = {path.relative_to(stored) for path in stored.rglob("*") if path.is_file()}
        single = {path.relative_to(singles / name) for path in (singles / name).rglob("*") if path.is_file()}
        found += [f"{name}/{path}" for path in files ^ single]
        same = files & single
        found += [f"{name}/{p}" for p in same if sha256_file(stored / p) != sha256_file(singles / name / p)]
    return found


def half_written(store: Path) -> list[str]:
    """Results that are there and not whole; a sound store has none."""
    found = [str(path) for path in store.glob("artifacts/*") if not (path / MANIFEST).is_file()]
    found += [str(path) for path in store.glob("reports/*") if not (path / PARITY).is_file()]
    for path in (*store.glob("parts/*.json"), *store.glob("estimates/*.json"), *store.glob("reports/*/*.json")):
        try:
            json.loads(path.read_text("utf-8"))
        except ValueError:
            found.append(str(path))
    return found


def verdicts(store: Path) -> dict[str, str]:
    found = {}
    for path in sorted(store.glob("reports/*/summary.json")):
        summary = from_json(Summary, path.read_bytes())
        found[summary.artifact] = f"{summary.planned - summary.failed} of {summary.planned}"
    return found


def unit_seconds(store: Path) -> dict[str, float]:
    """Seconds of each case of the float32 recipe, from its checks."""
    (report,) = store.glob(f"reports/tiny-{'[0-9a-f]' * 20}/{PARITY}")
    found: defaultdict[str, float] = defaultdict(float)
    for check in from_json(Evidence, report.read_bytes()).checks:
        if check.stage not in ("exam", "accuracy"):
            found[check.case] += check.seconds
    return {name: round(seconds, 3) for name, seconds in found.items()}


def harm(store: Path, processes: Processes, running: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Everything that goes wrong in the second run, in order, with the moment it did."""
    start, told = time.monotonic(), list[dict[str, Any]]()

    def tell(what: str) -> None:
        told.append({"seconds": round(time.monotonic() - start, 1), "what": what})
        print(f"  {told[-1]['seconds']:7.1f} s  {what}", flush=True)

    def find(kind: str) -> str:
        found: str = wait_until(
            lambda: processes.working(kind) or running.poll() is not None, f"{kind} under way", MANY
        )
        assert running.poll() is None, done(running)[1]
        return found

    for kind in ("build", "verify"):
        victim = find(f"{kind}-")
        processes.kill(victim)
        tell(f"kill -9 of {victim}, which does a {kind} task")
        processes.start_worker(victim)
        time.sleep(BETWEEN)
    find("verify-")
    processes.restart_scheduler()
    tell("kill -9 of the scheduler; a new one is started, and its workers")
    time.sleep(BETWEEN)
    find("verify-")
    store.rename(store.with_name("away"))
    tell("the store goes away")
    time.sleep(AWAY)
    store.with_name("away").rename(store)
    tell("the store is back")
    return told


@contextmanager
def small_disk(path: Path) -> Iterator[str]:
    """A disk of 1 MB at `path`, if this user may mount one; what it is, in words."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield "a tmpfs of 1 MB" if mounted else "a limit of 100,000 bytes for a file"
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)


def timed(step: str, action: Callable[[], Any]) -> tuple[float, Any]:
    print(step, flush=True)
    start = time.monotonic()
    found = action()
    return round(time.monotonic() - start, 1), found


def main(
    matrix: Annotated[str, typer.Option(help="The matrix every recipe is verified with.")] = "standard",
    work: Annotated[
        Path | None, typer.Option(help="Where everything is made; a temporary directory unless said.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the record goes.")] = RECORD,
) -> None:
    """Record both runs."""
    with tempfile.TemporaryDirectory(dir=work, prefix="fleet-record-") as folder:
        record(Path(folder), matrix, out)


def record(root: Path, matrix: str, out: Path) -> None:
    singles, first, second = root / "singles", root / "store", root / "harmed" / "store"
    second.parent.mkdir()
    os.environ["QWEN3VL_EXPORT_CACHE"] = str(root / "cache")  # PyTorch's results of this record alone

    def build_alone() -> None:
        for name in RECIPES:
            code, output = done(command("build", name, "--out", str(singles / name), cwd=ROOT))
            assert code == 0, output

    alone, _ = timed("single builds", build_alone)
    (root / "first").mkdir()
    with cluster(root / "first", *WORKERS) as processes:
        log = root / "first.jsonl"
        took, (code, output) = timed("the fleet", lambda: done(fleet(first, log, processes, matrix)))
        print(output, flush=True)
        count = len(events(log))
        again, (code_again, _) = timed("the fleet again", lambda: done(fleet(first, log, processes, matrix)))
        anew = [event for event in events(log)[count:] if event["event"] == "task-ended"]
    clean = {
        "seconds": took,
        "exit_code": code,
        "differing_files": differing(singles, first),
        "half_written": half_written(first),
        "verdicts": verdicts(first),
        "again": {"seconds": again, "exit_code": code_again, "made": len(anew)},
        **figures(events(log)[:count]),
    }
    values: dict[str, Any] = {
        "recipes": list(RECIPES),
        "matrix": matrix,
        "workers": len(WORKERS),
        "cores": os.cpu_count(),
        "single_builds_seconds": alone,
        "unit_seconds": unit_seconds(first),
        "seconds": clean.pop("task_seconds"),
        "versions": {name: version(name) for name in ("dask", "distributed", "fsspec", "torch", "onnxruntime")},
        "clean": clean,
    }
    write(out, values)
    shutil.copytree(first / "estimates", second / "estimates")  # the second run starts where it knows what to do
    (root / "second").mkdir()
    with small_disk(root / "second" / "w2") as disk, cluster(root / "second", "w0", "w1") as processes:
        processes.start_worker("w2", disk=root / "second" / "w2", small_disk=not disk.startswith("a tmpfs"))
        processes.wait_for_workers()
        log = root / "second.jsonl"
        start = time.monotonic()
        print("the fleet, harmed", flush=True)
        running = fleet(second, log, processes, matrix)
        told = list[dict[str, Any]]()
        harming = threading.Thread(target=lambda: told.extend(harm(second, processes, running)))
        harming.start()
        code, output = done(running)
        print(output, flush=True)
        harming.join()
        harmed_seconds = round(time.monotonic() - start, 1)
        count = len(events(log))
        _, (code_again, _) = timed("the harmed fleet again", lambda: done(fleet(second, log, processes, matrix)))
        anew = [event for event in events(log)[count:] if event["event"] == "task-ended"]
    listed = events(log)[:count]
    harmed = {
        "seconds": harmed_seconds,
        "exit_code": code,
        "faults": [{"seconds": 0.0, "what": f"w2 has {disk}"}, *told],
        "moved": dict(Counter(event["message"].split(" on ")[0] for event in listed if event["event"] == "task-moved")),
        "differing_files": differing(singles, second),
        "half_written": half_written(second),
        "verdicts": verdicts(second),
        "again": {"exit_code": code_again, "made": len(anew)},
        **figures(listed),
    }
    harmed.pop("task_seconds")
    write(out, {**values, "harmed": harmed})
    print(f"{out} written")


def write(out: Path, values: dict[str, Any]) -> None:
    out.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def figures(listed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and seconds of a run's tasks, from its log."""
    ended = [event for event in listed if event["event"] == "task-ended"]
    kinds = dict.fromkeys(event["kind"] for event in ended)
    return {
        "tasks": dict(Counter(f"{event['kind']} {event['status']}" for event in ended)),
        "events": dict(Counter(event["event"] for event in listed)),
        "task_seconds": {
            kind: [event["seconds"] for event in ended if event["kind"] == kind and event["status"] == "made"]
            for kind in kinds
        },
    }


if __name__ == "__main__":
    typer.run(main)

"""pytest options and fixtures: which artifact, which matrix, and tiny artifacts built once for every test.

`pytest parity_tests --artifact DIR [--matrix quick|standard|full]` carries out the plan `verify` carries out, one test
per check, and writes the same report into the artifact when the whole plan ran. Works with pytest-xdist.
"""

from __future__ import annotations

import os

# Thread pools that wait by spinning slow each other a hundredfold where workers share few cores. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from qwen3vl_export.artifact import MANIFEST, open_artifact
from qwen3vl_export.hash_cache import DIRECTORY_VARIABLE
from qwen3vl_export.recipe import load_recipe

from .bench import Bench
from .harness import open_bench, profile_of, report_of, write_evidence
from .matrix import TIERS, load_matrix
from .outcome import Outcome
from .plan import Check, Plan, Subject, plan

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    "tiny",
    "tiny-portable",
    "tiny-fp16",
    "tiny-fixed",
    "tiny-buckets",
)  # verified with the quick matrix where no artifact is given
OUTCOME = pytest.StashKey[Outcome]()
STARTED = pytest.StashKey[float]()
OUTCOMES = pytest.StashKey[list[Outcome]]()
SOURCES = ("qwen3vl_export/*.py", "qwen3vl_export/submodules/*.py", "recipes/*.yaml", "recipes/checkpoints/tiny/*")


def scratch() -> Path:
    """What test runs keep from one another, outside the user's own cache."""
    return Path(tempfile.gettempdir()) / f"qwen3vl-export-tests-{os.getuid()}"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("artifact") is None:
        os.environ.setdefault(DIRECTORY_VARIABLE, str(scratch()))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption("--artifact", type=Path, help="verify this artifact; without it, freshly built tiny ones")
    group.addoption(
        "--matrix", choices=TIERS, help="which cases; the recipe's choice unless said, quick without --artifact"
    )


def source_digest() -> str:
    """sha256 over everything a tiny build depends on, tool versions included, so that a kept build is never stale."""
    from qwen3vl_export.stages import tool_versions

    digest = hashlib.sha256(repr(tool_versions()).encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_once(name: str) -> Path:
    """The artifact of a shipped recipe, built if no test run has built it from the same sources before.

    Builds lie in the system's temporary directory under a digest of their sources. A lock lets several workers ask at
    the same time.
    """
    from qwen3vl_export.pipeline import build

    parent = scratch() / source_digest()
    parent.mkdir(parents=True, exist_ok=True)
    out = parent / name
    with FileLock(parent / f"{name}.lock"):
        if not (out / MANIFEST).is_file():
            shutil.rmtree(out, ignore_errors=True)
            build(load_recipe(ROOT / "recipes" / f"{name}.yaml"), out=out)
    return out


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """The artifact of a shipped tiny recipe, by name. Shared: copy it before changing anything in it."""
    return build_once


@pytest.fixture(scope="session")
def tiny_artifact() -> Path:
    """The artifact of recipes/tiny.yaml. Shared: copy it before changing anything in it."""
    return build_once("tiny")


@pytest.fixture(scope="session")
def tiny_portable_artifact() -> Path:
    """The artifact of recipes/tiny-portable.yaml, as `tiny_artifact`."""
    return build_once("tiny-portable")


@pytest.fixture(scope="session")
def tiny_fixed_artifact() -> Path:
    """The artifact of recipes/tiny-fixed.yaml, as `tiny_artifact`."""
    return build_once("tiny-fixed")


@pytest.fixture(scope="session")
def tiny_buckets_artifact() -> Path:
    """The artifact of recipes/tiny-buckets.yaml, as `tiny_artifact`."""
    return build_once("tiny-buckets")


@pytest.fixture(scope="session")
def benches(pytestconfig: pytest.Config) -> Callable[[str], Bench]:
    """The bench of an artifact, by the name of its recipe; "" is the one given by --artifact."""
    opened: dict[str, Bench] = {}

    def get(name: str) -> Bench:
        if name not in opened:
            path = build_once(name) if name else pytestconfig.getoption("artifact")
            opened[name] = open_bench(path, matrix_of(pytestconfig, name))
        return opened[name]

    return get


@pytest.fixture
def bench(recipe_name: str, benches: Callable[[str], Bench]) -> Bench:
    """The bench a parity test is carried out on."""
    return benches(recipe_name)


def matrix_of(config: pytest.Config, recipe_name: str) -> str | None:
    given: str | None = config.getoption("matrix")
    return given or ("quick" if recipe_name else None)


def plans(config: pytest.Config) -> dict[str, Plan]:
    """The plan of each artifact to verify, from manifests or recipes alone: collecting builds nothing."""
    path = config.getoption("artifact")
    if path is not None:
        subject = Subject.of_manifest(open_artifact(path, check=False).manifest)
        return {"": plan(matrix_of(config, ""), subject)}
    subjects = {name: Subject.of_recipe(load_recipe(ROOT / "recipes" / f"{name}.yaml")) for name in RECIPES}
    return {name: plan(matrix_of(config, name), subject) for name, subject in subjects.items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of each plan; `--dist loadgroup` keeps the checks of a case on one worker."""
    if {"recipe_name", "check"} <= set(metafunc.fixturenames):
        params = [
            pytest.param(name, check, id=test_id(name, check), marks=pytest.mark.xdist_group(group_of(name, check)))
            for name, planned in plans(metafunc.config).items()
            for check in planned.checks
        ]
        metafunc.parametrize(("recipe_name", "check"), params)


def test_id(recipe_name: str, check: Check) -> str:
    return f"{recipe_name}-{check.id}" if recipe_name else check.id


def group_of(recipe_name: str, check: Check) -> str:
    return f"{recipe_name} {check.case.name if check.case else 'exam'}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the outcome travels with the report, from a worker too
    report = yield
    if call.when == "call" and OUTCOME in item.stash:
        report.parity_outcome = item.stash[OUTCOME].to_json()
    return report


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.perf_counter()
    session.config.stash[OUTCOMES] = []
    session.config.pluginmanager.register(Collector(session.config.stash[OUTCOMES]))


class Collector:
    """Gathers the outcomes of this process's or its workers' tests."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (values := getattr(report, "parity_outcome", None)) is not None:
            self.outcomes.append(Outcome.from_json(values))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the evidence if an artifact was given and every check of its plan was carried out."""
    config = session.config
    path = config.getoption("artifact")
    if path is None or hasattr(config, "workerinput"):
        return
    planned = plans(config)[""]
    found = {outcome.id: outcome for outcome in config.stash[OUTCOMES]}
    if {check.id for check in planned.checks} != set(found):
        return
    artifact = open_artifact(path, check=False)
    seconds = {"total": time.perf_counter() - config.stash[STARTED]}
    outcomes = [found[check.id] for check in planned.checks]
    report = report_of(artifact, profile_of(artifact), planned, outcomes, seconds, load_matrix().seed)
    write_evidence(artifact, report, load_matrix())

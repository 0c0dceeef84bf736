"""Hypotheses small enough for tests, as YAML files: two layers, a few thousand weights, sixty steps."""

import json
from pathlib import Path
from typing import Any

import mlflow
import yaml

from lottery.files.home import home
from lottery.hypothesis.design import Hypothesis, read_hypothesis
from lottery.hypothesis.plan import Plan, make_plan, make_setup

TINY = {"layers": 2, "width": 32, "heads": 2, "inner": 64, "steps": 60, "context": 32, "batch": 8, "vocabulary": 300}
CORPUS = "0" * 64


def write(folder: Path, stem: str, **keys: Any) -> Path:
    """Writes a tiny hypothesis; `keys` are what it has beside its size, or instead of it."""
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump({**TINY, **keys}))
    return path


def plan_of(hypothesis: Hypothesis | str) -> Plan:
    """Returns the plan of a preset, a file or a hypothesis, on a corpus that nobody reads."""
    asked = read_hypothesis(hypothesis) if isinstance(hypothesis, str) else hypothesis
    return make_plan(asked, make_setup(asked, CORPUS, "cpu"))


def record_of(run_id: str) -> dict[str, Any]:
    """Returns hypothesis.json of a run."""
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="hypothesis.json")
    return json.loads(Path(path).read_text())


def everything() -> dict[str, int]:
    """Returns the time of every file of LOTTERY_HOME but locks: two of them are equal if nothing was written."""
    files = [path for path in home().rglob("*") if path.is_file() and "locks" not in path.parts]
    return {str(path): path.stat().st_mtime_ns for path in files}

"""One command makes every result of docs/results.md: its commands are those that stand in the files."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import tiny_model
from tests.support.paths import ROOT
from tests.support.words import write_random_words

RESULTS = sorted(
    p for m in ("builtin", "smollm2", "gemma") for p in (ROOT / "analysis" / "results").glob(f"*-{m}.json")
)
FOLDERS = {"builtin": "builtin", "smollm2": "/models/smollm2-135m-instruct", "gemma": "/models/gemma-3-270m"}
TEXTS = ("--dataset", "/texts/wikitext2-test.parquet", "--calibration", "/texts/wikitext103_train_excerpt.txt")


def run_studies(*given: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "analysis" / "run_studies.py"), *map(str, given)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def options(command: str) -> tuple[str, set[tuple[str, str]]]:
    """The study of a command, and its options without the folders of files, in any order."""
    words: Sequence[str] = shlex.split(command)
    values = [word.rpartition("/")[2] for word in words[4::2]]
    return words[2], set(zip(words[3::2], values, strict=True))


@pytest.mark.parametrize("model", FOLDERS)
def test_its_commands_are_those_of_the_committed_files(model: str) -> None:
    printed = run_studies(FOLDERS[model], *(TEXTS[:2] if model == "builtin" else TEXTS), "--dry-run").stdout
    planned = dict(line.split(": ", 1) for line in printed.splitlines())
    assert len(planned) == 11
    committed = [path for path in RESULTS if path.stem.endswith(model)]
    assert committed
    for path in committed:
        (study,) = json.loads(path.read_text())["studies"]
        assert options(planned[path.stem]) == options(study["command"])


def test_what_it_needs() -> None:
    for given, words in (
        (("phi", *TEXTS), "model=phi: give builtin, or a folder named smollm2-135m-instruct, gemma-3-270m"),
        (("/models/gemma-3-270m", *TEXTS[:2]), "calibration: model=/models/gemma-3-270m needs a text"),
        (("builtin", *TEXTS), "calibration=/texts/wikitext103_train_excerpt.txt: the embedded model writes its own"),
        (("builtin", *TEXTS[:2], "--only", "cliff"), "only=cliff: known are cliff-magnitude-builtin, "),
    ):
        refused = run_studies(*given)
        assert refused.returncode == 2 and words in refused.stderr


@pytest.mark.slow
def test_a_study_is_run_and_collected_once(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "gemma-3-270m", max_position_embeddings=1024)
    text = write_random_words(tmp_path / "text.txt")
    given = (
        model,
        "--dataset",
        text,
        "--calibration",
        text,
        "--only",
        "locate-magnitude-budget-gemma",
        "--out",
        tmp_path,
    )
    done = run_studies(*given)
    assert done.returncode == 0, done.stderr
    (study,) = json.loads((tmp_path / "locate-magnitude-budget-gemma.json").read_text())["studies"]
    assert study["name"] == "locate" and study["status"] == "finished" and study["study"]["budget"] == ["0.1"]
    assert (
        run_studies(*given).stdout
        == f"locate-magnitude-budget-gemma: {tmp_path}/locate-magnitude-budget-gemma.json is there\n"
    )

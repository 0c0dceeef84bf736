"""Where things lie: the repository, and the real model and texts beside it."""

import os
from pathlib import Path

import pytest

from lottery.files.home import home

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
STORIES = DATA / "stories260K"
WIKITEXT = DATA / "wikitext" / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet"

# where analysis/real_models.py has made them; read before a test's home replaces the user's
REAL_MODELS = Path(os.environ.get("LOTTERY_REAL_MODELS") or home() / "real-models")
IN_EVERY_CI = "smollm2-135m-instruct"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real model and texts in ../shared/data")


def real_model(name: str) -> Path:
    """The folder of a real model; without it the test is skipped, and in CI fails for the one that CI makes."""
    folder = REAL_MODELS / name
    if (folder / "provenance.json").is_file():
        return folder
    way_out = f"needs {folder}: run python analysis/real_models.py {REAL_MODELS} --only {name}"
    if os.environ.get("LOTTERY_CI") and name == IN_EVERY_CI:
        pytest.fail(way_out)
    pytest.skip(way_out)

"""Where things lie: the repository, and the real model and texts beside it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
STORIES = DATA / "stories260K"
WIKITEXT = DATA / "wikitext" / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real model and texts in ../shared/data")

"""What a hub serves here: a folder that looks like a small model, whole and in shards."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lottery.models.hub import INDEX, WHOLE


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's pauses between its attempts, left out."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a small model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("not needed")
    save_file({"a": np.ones(1000, np.float32)}, folder / WHOLE)
    return folder


@pytest.fixture
def sharded(model: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model, tmp_path / "sharded"))
    (folder / WHOLE).unlink()
    for i in (1, 2, 3):
        save_file({f"t{i}": np.full(100 * i, i, np.float32)}, folder / f"model-{i}.safetensors")
    save_file({"no": np.ones(1)}, folder / "consolidated.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"t{i}": f"model-{i}.safetensors" for i in (1, 2, 3)}}))
    return folder

"""Tickets do not depend on the processor: one without this one's instructions makes the same bytes and the same logits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lottery
from tests.support.models import tiny_model
from tests.support.paths import ROOT
from tests.support.store import new_store

KINDS = ("none", "int8")


def tickets(model: Path, folder: Path) -> None:
    """A ticket of each kind, and the logits of it loaded."""
    for kind in KINDS:
        lottery.prune(model=str(model), quantize=kind, measure="none", register="none", out=folder / kind)
        loaded, _ = lottery.load(folder / kind, device="cpu", dtype="float32", runtime="packed")
        with torch.inference_mode():
            save_file({"logits": loaded(torch.arange(20)[None]).logits}, folder / f"{kind}.safetensors")


@pytest.mark.slow  # every kernel is compiled for it
def test_a_processor_of_another_kind(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", hidden_size=128, intermediate_size=300)  # AVX-512 takes 64 codes at once
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    tickets(model, ours)
    program = (
        "from pathlib import Path; from tests.jobs.test_processors import tickets; "
        f"tickets(Path({str(model)!r}), Path({str(others)!r}))"
    )
    environment = {
        "NUMBA_CPU_NAME": "generic",
        "MLFLOW_TRACKING_URI": new_store(tmp_path / "x.db"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        names = sorted(path.name for path in (ours / kind).iterdir() if path.name != "measurements.json")
        assert any(name.endswith(".safetensors") for name in names)
        assert all((ours / kind / name).read_bytes() == (others / kind / name).read_bytes() for name in names)
        one, other = (load_file(folder / f"{kind}.safetensors")["logits"] for folder in (ours, others))
        assert torch.equal(one, other)

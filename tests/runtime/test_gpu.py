"""What a GPU must compute like a CPU. Without a GPU the same tests run on the CPU, so that they are known to work."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lottery.measuring.perplexity import nll_per_window
from lottery.models.sources import open_base
from lottery.models.targets import resolve_target
from lottery.pruning.stream import prune_source
from lottery.runtime import load
from lottery.runtime.decoding import Decoder
from lottery.spec import Spec
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model

pytestmark = pytest.mark.cuda
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))


def ticket_of(folder: Path, quantize: str) -> StoredTicket:
    base = open_base(str(tiny_model(folder / "model")))
    spec = Spec.parse(model=str(base.folder), quantize=quantize)
    (folder / "ticket").mkdir()
    prune_source(base, spec, resolve_target(spec.target, base.places, base.tied_head), folder / "ticket")
    return StoredTicket(folder / "ticket")


def loaded(stored: StoredTicket, device: str, runtime: str, dtype: str = "bfloat16") -> Any:
    return load.load_model(stored, list(stored.tensors), dtype, device, runtime)


@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_packed_weights_give_the_dense_logits(quantize: str, tmp_path: Path) -> None:
    stored = ticket_of(tmp_path, quantize)
    ids_1T = torch.arange(5, 69, device=DEVICE)[None]
    with torch.inference_mode():
        dense, packed = (loaded(stored, DEVICE, runtime)(ids_1T).logits for runtime in ("dense", "packed"))
    assert torch.equal(dense, packed)


def test_a_gpu_measures_what_a_cpu_measures(tmp_path: Path) -> None:
    stored = ticket_of(tmp_path, "none")
    ids_NT = np.random.default_rng(0).integers(5, 1000, (6, 96))
    here, there = (
        nll_per_window(loaded(stored, device, "dense", "float32"), ids_NT, lambda *_: None)
        for device in ("cpu", DEVICE)
    )
    np.testing.assert_allclose(there, here, rtol=2e-4)


@pytest.mark.parametrize("runtime", ["dense", "packed", "sparse"])
def test_a_graph_decodes_what_single_steps_decode(runtime: str, tmp_path: Path, capsys: Any) -> None:
    model = loaded(ticket_of(tmp_path, "fp8"), DEVICE, runtime)
    ids_1T = torch.arange(5, 37, device=DEVICE)[None]
    texts = []
    with torch.inference_mode():
        for graphs in (False, None):
            decoder = Decoder(model, 64, static=True, graphs=graphs)
            tokens = [decoder.begin(ids_1T)]
            while len(tokens) < 20:
                tokens += [decoder.next(tokens[-1])]
            texts.append(torch.cat(tokens, 1).tolist())
    assert texts[0] == texts[1]
    assert "no CUDA graph" not in capsys.readouterr().err
    if DEVICE == "cuda":
        assert decoder.graph is not None or decoder.step is not model


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None and "LOTTERY_CI" not in os.environ, reason="needs bitsandbytes"
)
def test_int8_in_bitsandbytes_is_near_the_packed_codes(tmp_path: Path) -> None:
    """bitsandbytes rounds activations to 8 bits too, so its logits are near and not equal."""
    stored = ticket_of(tmp_path, "int8")
    ids_1T = torch.arange(5, 69, device=DEVICE)[None]
    with torch.inference_mode():
        dense, packed = (loaded(stored, DEVICE, runtime)(ids_1T).logits.float() for runtime in ("dense", "packed"))
    error = (dense - packed).norm() / packed.norm()
    assert 0 < error < 0.05

"""The text that the dense model writes itself."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lottery.errors import InputError
from lottery.models.sources import open_base
from lottery.progress import Advance
from lottery.pruning import own_text
from lottery.pruning.calibration import Calibration, draw_samples
from lottery.runtime.load import load_model
from tests.support.models import tiny_model


def draw(folder: Path | str, nsamples: int, seqlen: int, seed: int = 0) -> np.ndarray:
    return draw_samples(Calibration("self", "self", nsamples, seqlen, seed, "dense"), open_base(str(folder)), "cpu")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in float32, in which the order of a sum does not choose another token; likely ones and unlikely ones."""
    return scaled(tiny_model(tmp_path_factory.mktemp("models") / "exact", dtype=torch.float32), "lm_head.weight", 20)


def scaled(folder: Path, part: str, by: float) -> Path:
    weights = load_file(folder / "model.safetensors")
    weights = {name: weight * by if part in name else weight for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.inference_mode()
def slow(folder: Path, nsamples: int, seqlen: int, seed: int) -> list[list[int]]:
    """One sample after the other, with no cache: from all words in order, the first up to which the probabilities add
    up to more than a number from 0 to 1."""
    base = open_base(str(folder))
    model = load_model(base, base.tensors, "float32", "cpu")
    samples = []
    for numbers in np.random.default_rng(seed).random((nsamples, seqlen)):
        ids = [0]
        for number in numbers[: seqlen - 1]:
            share_W = model(torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1).double().numpy()
            ids.append(next(word for word, total in enumerate(accumulate(share_W)) if total > number * share_W.sum()))
        samples.append(ids)
    return samples


def test_as_one_that_writes_slowly(exact: Path) -> None:
    ids_NT = draw(exact, 3, 12, seed=4)
    assert ids_NT.dtype == np.int64 and ids_NT.tolist() == slow(exact, 3, 12, 4)


def test_the_size_of_a_batch_changes_nothing(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids_NT = draw(exact, 12, 100)
    sizes, write_batch = [], own_text.write_batch

    def note(model: Any, first: int, uniform_NT: torch.Tensor, advance: Advance) -> np.ndarray | None:
        sizes.append(len(uniform_NT))
        return write_batch(model, first, uniform_NT, advance)

    monkeypatch.setattr(
        own_text, "CACHE_BYTES", 3 * 2 * 2 * 12 * 4 * 100 * 5
    )  # 3 layers, k and v, 2 heads of 12 floats
    monkeypatch.setattr(own_text, "write_batch", note)
    assert (draw(exact, 12, 100) == ids_NT).all() and sizes == [5, 5, 2]


def test_the_embedded_model_goes_on_after_an_end_token() -> None:
    ids_NT = draw("builtin", 4, 256)
    assert ids_NT.shape == (4, 256) and (ids_NT[:, 0] == 0).all()
    assert ((ids_NT[:, 1:-1] == 0) & (ids_NT[:, 2:] != 0)).any()


def test_the_same_again_and_another_text_for_another_seed(exact: Path) -> None:
    drawn = [draw(exact, 2, 32, seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and len({tuple(sample) for samples in drawn for sample in samples}) == 4


def test_a_model_that_overflows_in_float16_writes_in_bfloat16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = scaled(tiny_model(tmp_path / "m", dtype=torch.float16), "mlp", 2e4)
    ids_NT = draw(folder, 2, 8)
    assert ids_NT.shape == (2, 8) and len(np.unique(ids_NT)) > 4
    assert capsys.readouterr().err.count("warning: calibration=self: the model's output is not finite in float16") == 1


def test_a_model_that_writes_nothing(tmp_path: Path) -> None:
    folder = scaled(tiny_model(tmp_path / "m"), "norm", float("nan"))
    with pytest.raises(InputError, match="calibration=self: the model writes no text, its output is not finite"):
        draw(folder, 2, 8)


def test_the_token_that_begins_a_text(tmp_path: Path) -> None:
    """It is the tokenizer's, else the config's; BOS, else the end token."""
    folder = tiny_model(tmp_path / "m", bos_token_id=None, eos_token_id=[7, 8])
    assert (draw(folder, 2, 4)[:, 0] == 0).all()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert (draw(folder, 2, 4)[:, 0] == 7).all()
    folder = tiny_model(tmp_path / "n", bos_token_id=None, eos_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="calibration=self: the model has no token to begin a text with; give"):
        draw(folder, 2, 4)

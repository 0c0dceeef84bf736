"""A float16 model whose hidden states are too large for float16."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from lottery.ticket.comparing import mask_of
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.weights import same_bits, tensors

SAID = "the hidden states of this model overflow in float16; the calibration computes in bfloat16"
MORE = 512  # times as large, the outputs of the first block's MLP pass 65,504


def model_in(folder: Path, dtype: torch.dtype, more: float) -> Path:
    """The values of all copies are the same: float16 and float32 hold bfloat16's numbers of this size exactly."""
    model = tiny_model(folder, dtype=torch.bfloat16)
    state = tensors(model)
    for name in ("gate", "up", "down"):
        state[f"model.layers.0.mlp.{name}_proj.weight"] *= more
    state = {name: tensor.half().to(dtype) for name, tensor in state.items()}
    save_file(state, model / "model.safetensors", {"format": "pt"})
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"bfloat16"', f'"{str(dtype).removeprefix("torch.")}"'))
    return model


@pytest.mark.parametrize("method", ["wanda", "refit", "sparsegpt"])
def test_calibration_computes_in_bfloat16_and_says_so(method: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (tmp_path / "text.txt").write_text("One day a little girl went to the park with her dog. " * 50)
    given = ("--method", method, "--calibration", tmp_path / "text.txt", "--nsamples", "4", "--seqlen", "64")
    made = {}
    for name, dtype, more in (
        ("half", torch.float16, MORE),
        ("float", torch.float32, MORE),
        ("small", torch.float16, 1),
    ):
        model = model_in(tmp_path / f"m-{name}", dtype, more)
        said = cli(
            "prune", "--model", model, *given, "--measure", "none", "--register", "none", "--out", tmp_path / name
        ).stderr
        assert (SAID in said) == (name == "half")
        made[name] = StoredTicket(tmp_path / name)
    base, differ, total = tensors(tmp_path / "m-half"), 0, 0
    for name in (n for n in made["half"].tensors if "_proj" in n):
        assert made["half"].tensor(name).dtype == torch.float16 and made["half"].tensor(name).isfinite().all()
        masks = [np.unpackbits(mask_of(made[which], name)) for which in ("half", "float")]
        differ, total = differ + int((masks[0] != masks[1]).sum()), total + base[name].numel()
        if method == "wanda":
            assert same_bits(
                made["half"].tensor(name)[made["half"].tensor(name) != 0], base[name][made["half"].tensor(name) != 0]
            )
    assert differ < 0.05 * total  # bfloat16 has three digits

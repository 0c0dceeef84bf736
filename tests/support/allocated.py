"""What tests of allocations share: a model whose layers differ, and what the tensors of a ticket lost.

Legend: B blocks.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lottery.ticket.comparing import mask_of
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.weights import tensors

LAYER = re.compile(r"\.(\d+)\.")


def layer_of(name: str) -> int:
    found = LAYER.search(name)
    assert found, name
    return int(found[1])


def uneven_model(folder: Path) -> Path:
    """A random model, in which layers differ: each has larger outliers, and a heavier spectrum, than the one before."""
    tiny_model(folder, num_hidden_layers=4)
    state = tensors(folder)
    for name in state:
        if (layer := LAYER.search(name)) and state[name].ndim == 2:
            rows, columns = (torch.arange(1, n + 1) ** (-0.3 * int(layer[1])) for n in state[name].shape)
            state[name] = (state[name].float() * rows[:, None] * columns).to(state[name].dtype)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def removed(folder: Path) -> dict[str, int]:
    """How many weights each targeted tensor was asked to lose; it must have lost them."""
    stored, found = StoredTicket(folder), dict[str, int]()
    for name, entry in stored.entries.items():
        if "requested" in entry:
            assert entry["kept"] == entry["requested"] == int(np.unpackbits(mask_of(stored, name)).sum())
            found[name] = math.prod(entry["shape"]) - entry["kept"]
    return found


def by_layer(counts: dict[str, int]) -> np.ndarray:
    found: dict[int, int] = {}
    for name, count in counts.items():
        layer = layer_of(name)
        found[layer] = found.get(layer, 0) + count
    return np.array([found[layer] for layer in sorted(found)])


def sizes(model: Path, *words: str) -> dict[str, int]:
    return {n: t.numel() for n, t in tensors(model).items() if LAYER.search(n) and t.ndim == 2 and any(w in n for w in words or [""])}  # fmt: skip


def same_but_for_rounding(counts: dict[str, int], numel: dict[str, int], share_B: np.ndarray, sparsity: float) -> None:
    assert counts.keys() == numel.keys()
    assert sum(counts.values()) == round(sparsity * sum(numel.values()))
    for name, count in counts.items():
        assert abs(count - share_B[layer_of(name)] * numel[name]) < 1 + 1e-6 * numel[name]

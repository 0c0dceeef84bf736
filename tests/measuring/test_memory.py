"""The bytes that a loaded ticket takes, and those that one decoded token reads, beside a sum over what is stored."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lottery
from lottery.measuring.memory import weights_bytes
from lottery.measuring.speed import bytes_read_per_token
from lottery.runtime.layers import PackedLinear, workspaces
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import StoredTicket
from tests.support.families import make
from tests.support.models import tiny_model


def slow_bytes(stored: StoredTicket) -> tuple[int, int, int]:
    """(bytes of all tensors as they lie in packed layers, of the workspace in bfloat16, of the table of embeddings)"""
    total = workspace = table = 0
    for name, entry in stored.entries.items():
        rows, *more = entry["shape"]
        numel = rows * (more[0] if more else 1)
        if entry.get("packed"):
            width = 1 if "quantized" in entry else 2
            total += rows * -(-more[0] // 8) + entry["kept"] * width + 8 * rows  # bitmask, survivors, where rows begin
            total += 4 * rows if "quantized" in entry else 0  # scales
            workspace = max(workspace, 2 * numel)
        else:
            total += 2 * numel
        table += 2 * numel if name == "model.embed_tokens.weight" else 0
    return total, workspace, table


def rotary_bytes(model: Any) -> int:
    return sum(b.nbytes for n, b in model.named_buffers() if "rotary" in n)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_sparse_ticket_takes_what_a_packed_one_takes_and_reads_no_workspace(quantize: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", hidden_size=64, intermediate_size=104)
    lottery.prune(model=str(model), quantize=quantize, measure="none", register="none", out=tmp_path / "t")
    total, workspace, table = slow_bytes(open_ticket(tmp_path / "t"))
    assert workspace == 2 * 64 * 104 and table == 2 * 64 * 4096
    for runtime, reads in (("packed", workspace), ("sparse", 0)):
        loaded, _ = lottery.load(tmp_path / "t", device="cpu", dtype="bfloat16", runtime=runtime)
        assert sum(isinstance(m, PackedLinear) for m in loaded.modules()) == 7 * 3
        total_here = total + rotary_bytes(loaded)
        assert weights_bytes(loaded) == total_here + workspace
        assert bytes_read_per_token(loaded) == total_here - table + reads
        (shared,) = workspaces(loaded)
        assert shared.held is None  # it counts, and no product has needed it yet
        with torch.inference_mode():
            loaded(torch.arange(20)[None])
        assert shared.held is not None and shared.held.nbytes == workspace
        assert weights_bytes(loaded) == total_here + workspace


def test_a_second_buffer_counts_once_it_is_there(tmp_path: Path) -> None:
    """GPT-2 multiplies by transposed matrices."""
    model = make("gpt2", tmp_path / "m", "saved")
    lottery.prune(model=str(model), measure="none", register="none", out=tmp_path / "t")
    loaded, _ = lottery.load(tmp_path / "t", device="cpu", dtype="bfloat16", runtime="packed")
    before, (shared,) = weights_bytes(loaded), workspaces(loaded)
    with torch.inference_mode():
        loaded(torch.arange(20)[None])
    assert weights_bytes(loaded) - before == shared.numel * 2 > 0

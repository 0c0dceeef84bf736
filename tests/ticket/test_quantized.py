"""8-bit tickets: what they count, what they are no source of, and what is refused of one that lies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import lottery
from lottery.errors import InputError
from lottery.ticket.folder import TicketFolder
from lottery.ticket.opening import open_ticket
from tests.support.models import tiny_model

QUICK = ("--measure", "none", "--register", "none")


def test_a_quantized_ticket_counts_its_zeros_apart_and_is_no_source(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    folder = tiny_model(tmp_path / "model")
    out = tmp_path / "t"
    found = lottery_json(
        "prune", "--model", folder, "--quantize", "int8", "--target", "late", "--out", out, *QUICK
    )["metrics"]  # fmt: skip
    stored = open_ticket(out)
    in_8_bits = {n for n, e in stored.entries.items() if "quantized" in e}
    assert in_8_bits == {n for n, e in stored.entries.items() if e["role"] in ("attention", "mlp")}  # not late alone
    zeros = sum(int((stored.tensor(n) == 0).sum()) for n in in_8_bits)
    pruned = sum(stored.info(n).numel - e["kept"] for n, e in stored.entries.items() if "kept" in e)
    assert found["rounding_zeros"] == zeros - pruned > 0
    assert found["sparsity_target"] == 0.5 and pruned == sum(
        stored.info(n).numel // 2 for n, e in stored.entries.items() if "requested" in e
    )
    said = cli("prune", "--model", out, *QUICK, code=2).stderr
    assert "is quantized (int8)" in said and "prune a ticket that is not quantized" in said
    planned = lottery_json("plan", "--model", folder, "--quantize", "int8", "--target", "late")
    sizes = {key.rpartition(".")[2] for key in stored._stored}
    assert sizes == {"bitmask", "values", "scale", "weight"}
    assert planned["disk_bytes_after"] == sum(info.nbytes for info in stored._stored.values())


@pytest.mark.parametrize(
    ("quantize", "key", "change"),
    [
        ("int8", "scale", lambda t: t * torch.nan),
        ("int8", "scale", lambda t: -t),
        ("fp8", "scale", lambda t: t.bfloat16()),
        ("int8", "scale", lambda t: t.double()),
        ("int8", "scale", lambda t: t[1:].clone()),
        ("int8", "values", lambda t: torch.full_like(t, -128)),
        ("fp8", "values", lambda t: torch.full_like(t.view(torch.uint8), 0x7F).view(t.dtype)),
        ("fp8", "values", lambda t: t.view(torch.int8)),
        ("int8", "values", lambda t: torch.zeros_like(t)),
        ("int8", "bitmask", lambda t: t.view(torch.int8)),
        ("int8", "bitmask", lambda t: t[:10].clone()),
        ("none", "bitmask", lambda t: t[:10].clone()),
        ("mask", "bitmask", lambda t: t[:10].clone()),
        ("mask", "bitmask", lambda t: t[:, :3].clone()),
    ],
)
def test_an_8_bit_ticket_that_lies(
    quantize: str, key: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """Every hash in it made right again: what does not fit together is refused all the same."""
    from safetensors.torch import load_file, save_file

    from lottery.files.reading import read_json
    from lottery.ticket import packing
    from lottery.ticket.record import RECORD, header_sha256, write_record

    folder, out = tiny_model(tmp_path / "model", hidden_size=64), tmp_path / "t"
    how = ("--storage", "mask") if quantize == "mask" else ("--quantize", quantize)
    cli("prune", "--model", folder, "--target", "k_proj", "--out", out, *how, *QUICK)
    record, name = read_json(out / RECORD), "model.layers.1.self_attn.k_proj.weight"
    for shard in record["shards"]:
        state = load_file(out / shard)
        if f"{name}.{key}" in state:
            state[f"{name}.{key}"] = change(state[f"{name}.{key}"])
            (out / shard).chmod(0o644)
            save_file(state, out / shard, {"format": "pt"})
        record["shards"][shard] = header_sha256(out / shard)
    stored: dict[str, torch.Tensor] = {}
    for shard in record["shards"]:
        stored |= load_file(out / shard)
    parts = [stored[k] for part in ("bitmask", "values", "scale") if (k := f"{name}.{part}") in stored]
    if quantize == "mask":
        parts.append(load_file(folder / "model.safetensors")[name])
    record["tensors"][name]["sha256"] = packing.sha256_of(*map(packing.tensor_bytes, parts))
    write_record(out, {k: v for k, v in record.items() if k != "checksum"})
    said = cli("verify", "--ticket", out, "--base", folder if quantize == "mask" else "auto", code=2).stderr
    assert "k_proj" in said and "Traceback" not in said
    if quantize != "mask":  # what `publish` and `fetch` ask, without torch, refuses the same
        with pytest.raises(InputError, match="k_proj"):
            TicketFolder(out).verify()
    for kind in ("dense", "packed"):
        if (key, quantize) != ("values", "int8") or change(torch.ones(2, dtype=torch.int8))[
            0
        ]:  # all 0: found by `verify`
            with pytest.raises(InputError):
                lottery.load(out, runtime=kind, base=str(folder) if quantize == "mask" else "auto")

"""The benchmark of decoding, in small: its tables have their figures, and what it times computes the same."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from lottery.kernels import bitmask, select
from lottery.kernels.product import available_kernels
from lottery.models.checkpoint import BUILTIN
from tests.support.paths import ROOT

LLAMA = os.environ.get("LOTTERY_LLAMA", sys.executable)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    spec = importlib.util.spec_from_file_location("analysis_bench", ROOT / "analysis" / "bench.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from benchmarks import decode_layers, decode_llama, decode_models

    for part in (decode_layers, decode_llama, decode_models):
        monkeypatch.setattr(part, "BLOCK_BYTES", 1 << 20)
    return module


def run(bench: Any, *arguments: str) -> Result:
    return CliRunner().invoke(bench.main, ["decode", "--rounds", "2", *arguments])


def found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])["decode"]


def test_a_layer(bench: Any) -> None:
    result = run(bench, "--only", "smollm2-layer", "--copies", "1", "--sparsity", "0", "--sparsity", "0.5")
    part = found(result)["smollm2-layer"]
    assert set(part) == {"0%", "50%"} and part["50%"]["read_gb_s"][0] > 0
    rows = part["50%"]["rows"]
    columns = {name: set(row) for name, row in rows.items() if not name.startswith("torch")}
    assert columns == {
        "none dense": {"ms", "of_floor", "torch"},
        "int8 dense": {"ms", "of_floor", "torch", "16_bits"},
        "fp8 dense": {"ms", "of_floor", "torch", "16_bits"},
        "none pruned": {"ms", "of_floor", "torch", "own_loop"},
        "int8 pruned": {"ms", "of_floor", "torch", "own_loop", "16_bits"},
        "fp8 pruned": {"ms", "of_floor", "torch", "own_loop", "16_bits"},
    }
    assert "torch" in rows["torch bfloat16"] or "torch" in rows["torch float32"]  # the slower against the faster
    for row in rows.values():
        low, high = row["of_floor"][1:]
        assert row["ms"] > 0 and 0 < low <= row["of_floor"][0] <= high
    table = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("  | ")]
    assert table == [
        "weights", "---", "torch bfloat16, dense", "torch float32, dense", "16 bits, 0%", "int8, 0%", "fp8, 0%",
        "16 bits, 50%", "int8, 50%", "fp8, 50%",
    ]  # fmt: skip


@pytest.mark.parametrize("kernel", available_kernels())
@pytest.mark.parametrize(("kind", "error"), [("none", 1e-2), ("int8", 2e-2), ("fp8", 0.1)])
def test_what_is_timed_computes_the_same(bench: Any, kernel: str, kind: str, error: float) -> None:
    from benchmarks import decode_layers, turns

    layer = decode_layers.Layer("tiny", decode_layers.layer_shapes(64, 16, 96), 2)
    weights = decode_layers.make_weights(layer)
    masked, kept = [], 0
    for group in weights:
        for weight_OI in group:
            bits_OI = weight_OI.view(torch.uint16).numpy()
            mask_OB = select.select(bits_OI, bits_OI.size // 2)
            masked.append(torch.from_numpy(bitmask.apply_mask(bits_OI, mask_OB)).view(torch.bfloat16))
            kept += bits_OI.size - bits_OI.size // 2
    x = decode_layers.activations(weights)
    for zeros, expected in (
        (0.5, masked),
        (0.0, [weight_OI for group in weights for weight_OI in group]),
    ):
        products = decode_layers.stored_products(weights, kind, zeros, turns.Conditions(1, 2, kernel, [kind]))
        outs = products.work()
        assert len(outs) == len(expected) == 14
        for out, weight_OI in zip(outs, expected, strict=True):
            right = x[weight_OI.shape[1]].double() @ weight_OI.double().T
            assert torch.linalg.norm(out.double() - right) <= error * torch.linalg.norm(right)
    for products in decode_layers.torch_products(weights).values():
        for out, right in zip(products.work(), outs, strict=True):
            assert torch.linalg.norm(out.double() - right.double()) <= error * torch.linalg.norm(right.double())
    counted = decode_layers.stored_products(weights, kind, 0.5, turns.Conditions(1, 1, kernel, [kind])).nbytes
    rows, numel = sum(len(m) for m in masked), sum(m.numel() for m in masked)
    assert counted == kept * (2 if kind == "none" else 1) + numel // 8 + rows * (8 if kind == "none" else 12)


def test_ratios_are_those_within_a_turn(bench: Any) -> None:
    from benchmarks import bandwidth, turns

    taken = iter([9.0, 9.0, 2.0, 1.0, 40.0, 10.0, 6.0, 2.0])  # the first turn warms up
    ways = {"slow": lambda: next(taken), "fast": lambda: next(taken)}
    reader = bandwidth.Reader(1 << 20, 2)
    times = turns.take_turns(ways, reader, 3)
    assert times.ratio("slow", "fast") == [3.0, 2.5, 3.5]
    assert times.milliseconds("fast") == 2000 and times.per_second("fast")[0] == 0.5
    times.bandwidth["fast"] = np.array([10.0, 1.0, 5.0])
    assert times.of_floor("fast", 10) == [1.0, 1.0, 1.0]
    assert reader.sums.sum() == reader.block.size


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_whole_block_is_read(bench: Any, threads: int) -> None:
    from benchmarks import bandwidth

    reader = bandwidth.Reader(1 << 20, threads)
    reader.block[:] = 0
    reader.block[[0, -1]] = 5, 9
    with pytest.raises(AssertionError):  # it checks that it has read everything
        reader()
    assert reader.sums.sum() == 14 and (threads == 1 or reader.sums[-1] == 9)


def test_a_whole_model(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTERY_REAL_MODELS", str(tmp_path / "real"))
    arguments = ("--only", "smollm2-model", "--quantize", "none", "--folder", str(tmp_path))
    result = run(bench, *arguments)
    assert found(result)["smollm2-model"] is None and "python analysis/real_models.py makes it" in result.stdout
    shutil.copytree(BUILTIN, tmp_path / "real" / "smollm2-135m-instruct")
    rows = found(run(bench, *arguments))["smollm2-model"]
    assert {"16 bits, packed", "16 bits, sparse", "dense float32"} <= set(rows)
    assert all(row["tokens_per_s"][0] > 1 for row in rows.values())
    assert all("dense" in rows[f"16 bits, {runtime}"] for runtime in ("packed", "sparse"))


def test_llama_is_left_out_with_the_way_to_it(bench: Any, tmp_path: Path) -> None:
    python = shutil.which("false")
    result = run(bench, "--only", "llama", "--llama", str(python))
    assert found(result)["llama"] is None and "pip install llama-cpp-python gguf" in result.stdout


def test_llama(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import decode_layers, decode_llama

    if not decode_llama.has_llama(LLAMA):
        pytest.skip("needs a Python, in LOTTERY_LLAMA, that has llama-cpp-python and gguf")
    tiny = decode_layers.Layer("tiny", decode_layers.layer_shapes(256, 128, 512), 1)
    monkeypatch.setitem(decode_layers.LAYERS, "mistral", tiny)
    result = run(bench, "--only", "llama", "--quantize", "int8", "--llama", LLAMA, "--folder", str(tmp_path))
    rows = found(result)["llama"]["rows"]
    assert set(rows) == {"torch bfloat16", "torch float32", "int8 pruned", "Q8_0", "F16"}
    assert rows["int8 pruned"]["Q8_0"][0] > 0 and rows["Q8_0"]["F16"][0] > 0


def test_a_kernel_that_does_not_exist(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lottery.kernels import product

    product.pick_kernel.cache_clear()
    monkeypatch.setenv("LOTTERY_KERNEL", "sse")
    result = run(bench, "--only", "smollm2-layer")
    product.pick_kernel.cache_clear()
    assert result.exit_code == 2 and "LOTTERY_KERNEL=sse" in result.stderr

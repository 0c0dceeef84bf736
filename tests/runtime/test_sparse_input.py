"""What a user may get wrong with runtime=sparse, through the command: one clear line, or a warning and the next best way."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

import lottery
from lottery.errors import InputError
from lottery.kernels import product
from lottery.kernels.parallel import THREADS
from lottery.runtime import load
from tests.support.models import tiny_model
from tests.support.paths import ROOT
from tests.support.refused import refused

Cli = Callable[..., Result]
QUICK = ("--measure", "none", "--register", "none")
SPARSE = ("--runtime", "sparse", "--device", "cpu")


def test_an_unknown_kernel_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, cli: Cli, force: Callable[[str], None]
) -> None:
    cli("prune", "--model", tiny, "--out", tmp_path / "t", *QUICK)
    force("avx1024")
    says = ("LOTTERY_KERNEL=avx1024", "give one of avx512, avx2, plain", "or nothing for the fastest")
    for measure in ("none", "perplexity"):
        how = ("--model", tiny, "--dataset", "builtin", "--measure", measure, "--register", "none", *SPARSE)
        result = cli("prune", *how, "--out", tmp_path / "new", code=2)
        refused(result, *says)
        assert "prune" not in result.stderr.split("Error: ")[0] and not (tmp_path / "new").exists()
    refused(cli("evaluate", tmp_path / "t", "--dataset", "builtin", *SPARSE, code=2), *says)
    refused(cli("generate", tmp_path / "t", "--runtime", "sparse", code=2), *says)
    with pytest.raises(InputError, match="LOTTERY_KERNEL=avx1024"):
        lottery.load(tmp_path / "t", device="cpu", runtime="sparse")
    (line,) = [c for c in json.loads(cli("doctor", "--json", code=1).stdout)["checks"] if c["name"] == "kernel"]
    assert not line["fine"] and line["found"].startswith("LOTTERY_KERNEL=avx1024: give one of")
    cli("generate", tmp_path / "t", "--tokens", 2)  # no other runtime asks for a kernel


PROGRAM = """
import json, os, sys
from click.testing import CliRunner
from lottery.cli.main import main
from lottery.kernels import product

def run(*arguments, kernel=""):
    os.environ["LOTTERY_KERNEL"] = kernel
    product.pick_kernel.cache_clear()
    result = CliRunner().invoke(main, arguments)
    return [result.exit_code, result.stdout, result.stderr]

generate = ("generate", sys.argv[1], "--tokens", "3", "--runtime", "sparse")
print(json.dumps([run("doctor", "--json"), run(*generate, kernel="avx512"), run(*generate)]))
"""


def test_a_processor_without_the_instructions(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    """numba compiles for a processor of 2003, so that neither AVX-512 nor AVX2 is there."""
    cli("prune", "--model", tiny, "--out", tmp_path / "t", *QUICK)
    environment = os.environ | {
        "NUMBA_CPU_NAME": "generic",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "t"], env=environment, capture_output=True, text=True, check=True
    )
    (code, checks, _), (refused_code, out, said), (fine, text, _) = json.loads(done.stdout)
    kernel = next(c for c in json.loads(checks)["checks"] if c["name"] == "kernel")
    assert code == 0 and kernel["fine"]
    assert kernel["found"].endswith("multiplies few tokens with plain, the only one that this processor can run")
    assert (refused_code, out) == (2, "") and "Traceback" not in said
    assert "Error: LOTTERY_KERNEL=avx512: this processor lacks its instructions; it can run plain\n" in said
    assert fine == 0 and text == cli("generate", tmp_path / "t", "--tokens", 3, "--runtime", "sparse").stdout


def test_doctor_names_the_kernel_and_the_others(cli: Cli, force: Callable[[str], None]) -> None:
    able = product.available_kernels()
    for name in able:
        force(name)
        (line,) = [c for c in json.loads(cli("doctor", "--json").stdout)["checks"] if c["name"] == "kernel"]
        assert line["fine"] and f"multiplies few tokens with {name}" in line["found"]
        assert all(other in line["found"] for other in able)


def test_what_is_stored_whole_runs_dense_with_a_warning(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    cli("prune", "--model", tiny, "--sparsity", 0, "--out", tmp_path / "t", *QUICK)
    result = cli("generate", tmp_path / "t", "--tokens", 5, "--runtime", "sparse")
    warning = "warning: runtime=sparse: this ticket has no packed matrix, so that it runs as with runtime=dense"
    assert warning in result.stderr and result.stdout == cli("generate", tmp_path / "t", "--tokens", 5).stdout
    how = ("--dataset", "builtin", "--limit", 2, "--measure", "perplexity")
    assert cli("evaluate", tmp_path / "t", *how, *SPARSE).stderr.count("this ticket has no packed matrix") == 1


def test_a_dense_base_runs_dense_with_a_warning(tiny: Path, cli: Cli) -> None:
    warning = "warning: runtime=sparse: a dense base has no packed matrix, so that it runs as with runtime=dense"
    result = cli("generate", tiny, "--tokens", 5, "--runtime", "sparse")
    assert warning in result.stderr and result.stdout == cli("generate", tiny, "--tokens", 5).stdout
    how = ("--dataset", "builtin", "--limit", 2, "--measure", "perplexity")
    assert warning in cli("evaluate", tiny, *how, *SPARSE).stderr
    assert "no packed matrix" not in cli("evaluate", tiny, *how, "--device", "cpu").stderr


def test_masks_without_their_base(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--storage", "mask", "--out", tmp_path / "t", *QUICK)
    with_base = cli("generate", tmp_path / "t", "--tokens", 5, "--runtime", "sparse").stdout
    model.rename(tmp_path / "elsewhere")
    how = ("--dataset", "builtin", "--limit", 2, "--measure", "perplexity")
    refused(
        cli("generate", tmp_path / "t", "--runtime", "sparse", code=2),
        "base m could not be opened",
        "give its folder as base",
    )
    refused(
        cli("evaluate", tmp_path / "t", *how, *SPARSE, code=2), "base m could not be opened", "give its folder as base"
    )
    moved = ("--base", tmp_path / "elsewhere")
    assert cli("generate", tmp_path / "t", "--tokens", 5, "--runtime", "sparse", *moved).stdout == with_base


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_gradients_are_refused_or_right(tokens: int, tmp_path: Path, cli: Cli) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "m"), "--target", "mlp", "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", device="cpu", dtype="float32", runtime="sparse")
    twin, _ = lottery.load(tmp_path / "t", device="cpu", dtype="float32", runtime="packed")
    ids_1T = torch.arange(tokens)[None]
    for one in (model, twin):  # the head is whole; it can learn, with few tokens too
        one.lm_head.weight.requires_grad_(True)
        one(ids_1T).logits.square().sum().backward()
    torch.testing.assert_close(model.lm_head.weight.grad, twin.lm_head.weight.grad, rtol=1e-4, atol=1e-4)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(InputError, match="runtime: packed, sparse and 8-bit layers have no gradients; load"):
        model(ids_1T)


def test_more_threads_than_processors_are_told_once(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    before = torch.get_num_threads()
    load.warn_of_threads.cache_clear()
    torch.set_num_threads(THREADS + 3)
    how = ("--dataset", "builtin", "--limit", 2, "--measure", "perplexity", "--control", 2, "--register", "none")
    try:
        said = cli("prune", "--model", tiny, *how, *SPARSE).stderr  # it loads the ticket and two controls
    finally:
        torch.set_num_threads(before)
        load.warn_of_threads.cache_clear()
    line = f"warning: OMP_NUM_THREADS={THREADS + 3}: this job has {THREADS} processors; products of few tokens use {THREADS} threads"
    assert said.count(line) == 1

"""What dense blocks gave is kept: later tickets need no pass, and have the bytes that they have without it."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from lottery.pruning import kept
from lottery.pruning.statistics import mirror, mirror_on_gpu
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.words import write_random_words

Cli = Callable[..., Result]
QUICK = ("--measure", "none", "--register", "none")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


said: list[str] = []


@pytest.fixture
def prune(tmp_path: Path, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Prunes a tiny model by what dense blocks give of 40 samples, in this home or, with `alone`, in a new one. Returns
    the hashes of the ticket's shards, and the seconds of the passes. `said` holds what was
    written to stderr."""
    model, text = tiny_model(tmp_path / "m"), write_random_words(tmp_path / "text.txt")
    count = 0

    def run(method: str, *more: Any, alone: bool = False) -> tuple[dict[str, str], float]:
        nonlocal count
        count += 1
        out = tmp_path / f"t{count}"
        monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / f"home{count}" if alone else home))
        result = cli(
            "prune", "--json", "--model", model, "--method", method, "--propagate", "dense", "--calibration", text,
            "--nsamples", "40", "--seqlen", "16", "--out", out, *more, *QUICK,
        )  # fmt: skip
        said.append(result.stderr)
        shas = {name: entry["sha256"] for name, entry in StoredTicket(out).entries.items()}
        return shas, json.loads(result.stdout)["metrics"]["calibrate_s"]

    return run


def parts(home: Path) -> list[Path]:
    return sorted(p for p in (home / "grams").glob("*/*") if p.is_dir())


def test_a_second_sparsity_needs_no_pass_and_has_the_same_bytes(prune: Any, home: Path) -> None:
    assert prune("refit", "--sparsity", "0.5")[1] > 0
    assert len({p.parent for p in parts(home)}) == 2, "32 samples, and 8"
    for method, more in [
        ("refit", ("--sparsity", "0.7")),
        ("sparsegpt", ("--sparsity", "0.6")),
        ("alps", ("--pattern", "2:4")),
        ("wanda", ("--sparsity", "0.6")),
        ("refit", ("--sparsity", "0.6", "--target", "mlp@1")),
    ]:
        shas, seconds = prune(method, *more)
        assert seconds == 0, method
        assert (shas, True) == (prune(method, *more, alone=True)[0], True), method


def test_parts_of_several_runs_serve_one(prune: Any, home: Path) -> None:
    prune("refit", "--target", "attention")
    prune("refit", "--target", "mlp@0")
    shas, seconds = prune("refit", "--target", "all")
    assert seconds > 0, "the MLP of block 1 is new"
    assert shas == prune("refit", "--target", "all", alone=True)[0]
    assert prune("sparsegpt", "--target", "all")[1] == 0
    assert prune("refit", "--target", "all", "--seed", "1")[1] > 0, "other samples"


def test_an_input_that_a_folder_holds_twice_counts_once(prune: Any, home: Path) -> None:
    """q alone, then q, k and v together; the folder of the first samples then holds the second kind alone."""
    prune("refit", "--target", "q_proj")
    prune("refit", "--target", "attention")
    for folder in sorted({p.parent for p in parts(home)}):
        kept_elsewhere = folder.with_name("elsewhere")
        folder.rename(kept_elsewhere)
        prune("refit", "--target", "attention")
        shas, seconds = prune("refit", "--target", "attention", "--sparsity", "0.7")
        assert seconds == 0
        assert shas == prune("refit", "--target", "attention", "--sparsity", "0.7", alone=True)[0]
        shutil.rmtree(folder)
        kept_elsewhere.rename(folder)


def test_norms_alone_do_not_serve_a_gram_matrix(prune: Any, home: Path) -> None:
    prune("wanda")
    assert all("-norms-" in p.name for p in parts(home))
    assert prune("wanda", "--sparsity", "0.7")[1] == 0
    assert prune("refit")[1] > 0


def test_the_head_is_kept_too(prune: Any) -> None:
    prune("refit", "--target", "lm_head")
    shas, seconds = prune("refit", "--target", "lm_head", "--sparsity", "0.7")
    assert seconds == 0
    assert shas == prune("refit", "--target", "lm_head", "--sparsity", "0.7", alone=True)[0]


@pytest.mark.parametrize("damage", ["byte", "short", "index", "no index"])
def test_what_is_damaged_is_made_again(damage: str, prune: Any, home: Path) -> None:
    prune("refit")
    place = parts(home)[0]
    (file,) = place.glob("*.safetensors")
    file.chmod(0o644)
    if damage == "byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "index":
        (place / kept.INDEX).write_text('{"inputs": [')
    else:
        (place / kept.INDEX).unlink()
    shas, seconds = prune("refit", "--sparsity", "0.6")
    assert seconds > 0
    assert f"the kept sums in {place} are damaged; they are made again" in said[-1]
    assert prune("refit", "--sparsity", "0.7")[1] == 0
    assert shas == prune("refit", "--sparsity", "0.6", alone=True)[0]


def test_the_oldest_go_first(prune: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune("refit", "--seed", "1")
    one = sum(p.stat().st_size for p in (home / "grams").rglob("*") if p.is_file())
    first = {p.parent for p in parts(home)}
    prune("refit", "--seed", "2")
    second = {p.parent for p in parts(home)} - first
    for folder in first:
        os.utime(folder, (1, 1))
    assert prune("refit", "--seed", "1", "--sparsity", "0.6")[1] == 0, "used: now the second is the oldest"
    for folder in second:
        os.utime(folder, (1, 1))
    monkeypatch.setattr(kept, "LIMIT", int(2.6 * one))
    prune("refit", "--seed", "3")
    left = {p.parent for p in parts(home)}
    assert first <= left and not second <= left
    assert sum(p.stat().st_size for p in (home / "grams").rglob("*") if p.is_file()) <= 2.6 * one


def test_what_another_run_reads_is_not_removed(prune: Any, home: Path) -> None:
    prune("refit")
    folder = parts(home)[0].parent
    with open(folder / kept.LOCK, "a+") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not kept.remove_unused(folder) and parts(home)
    assert kept.remove_unused(folder) and not folder.exists()


def test_a_disk_that_is_nearly_full(prune: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SPARE", 10**16)
    prune("refit")
    assert re.search(r"not kept for later runs: \S+ has [\d.]+ GB left, and they would take 0.0", said[-1])
    assert not parts(home)


@pytest.mark.parametrize("size", [1, 5, 1500])
def test_both_ways_to_mirror(size: int) -> None:
    """What a GPU does is done here on the CPU."""
    upper_II = torch.randn(size, size, generator=torch.manual_seed(0))
    here, there = upper_II.clone(), upper_II.clone()
    mirror(here.numpy())
    mirror_on_gpu(there)
    assert torch.equal(here, there) and torch.equal(here, here.T) and torch.equal(here.triu(), upper_II.triu())


def test_no_room(prune: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LIMIT", 1000)
    shas, _ = prune("refit")
    err = said[-1]
    assert err.count("the sums of the calibration are not kept for later runs: they would take more than") == 1
    assert not parts(home)
    assert shas == prune("refit", alone=True)[0]


def test_a_full_disk(prune: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_sums", full)
    shas, _ = prune("refit")
    assert said[-1].count("not kept for later runs: [Errno 28] No space left on device") == 1
    assert not parts(home)
    monkeypatch.undo()
    assert shas


def test_a_lock_that_another_process_holds(prune: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends, however it ends, lets go of it."""
    (home / "locks").mkdir(parents=True)
    holds = "import fcntl, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", holds, str(home / "locks" / "grams")], stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline()
        monkeypatch.setattr(kept, "LOCK_S", 0.1)
        prune("refit")
        assert "not kept for later runs: another process holds their lock" in said[-1]
    finally:
        other.kill()
        other.wait()
    prune("refit")
    assert prune("refit", "--sparsity", "0.6")[1] == 0


def test_what_a_folder_holds(prune: Any, home: Path) -> None:
    """Plain safetensors: the triangles are the sums of the inputs' products."""
    from safetensors.numpy import load_file

    prune("refit", "--target", "attention@0")
    place = next(p for p in parts(home) if p.name.startswith("block-0-grams"))
    index = json.loads((place / kept.INDEX).read_text())
    (file,) = place.glob("*.safetensors")
    held = load_file(file)
    for i, one in enumerate(index["inputs"]):
        columns = one["columns"]
        gram_II = np.zeros((columns, columns), np.float32)
        gram_II[np.triu_indices(columns)] = held[f"{i}.gram"]
        np.testing.assert_allclose(np.diag(gram_II), held[f"{i}.squares"], rtol=1e-5)
    assert [len(one["keys"]) for one in index["inputs"]] == [3, 1], "q, k and v share their input"

"""The main job on real models: pruned like torch, measured as it lies on disk."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import Result
from torch.nn.utils import prune as torch_prune

import lottery
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.paths import ROOT, STORIES, WIKITEXT, needs_data

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def pruned_by_torch(model: Path, sparsity: float, targeted: Callable[[str], bool]) -> Any:
    twin = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and targeted(name):
            torch_prune.l1_unstructured(module, "weight", amount=sparsity)
            torch_prune.remove(module, "weight")
    return twin.eval()


def twin_nll(model: Any, ids_NT: torch.Tensor) -> torch.Tensor:
    """Mean NLL of each window, one at a time, by transformers' own loss."""
    with torch.inference_mode():
        return torch.stack([model(ids_T[None], labels=ids_T[None]).loss for ids_T in ids_NT]).double()


def windows_of(model: Path, text: str, window: int) -> torch.Tensor:
    ids = transformers.AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    return torch.tensor(ids[: len(ids) // window * window]).view(-1, window)


@needs_data
@pytest.mark.parametrize(("target", "layers"), [("all", range(5)), ("late", range(2, 5))])
def test_the_ticket_is_the_model_that_torch_prunes(
    target: str, layers: range, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    text = (ROOT / "lottery" / "assets" / "evaluation.txt").read_text()[:20_000]
    (tmp_path / "text.txt").write_text(text)
    made = lottery_json(
        "prune", "--model", STORIES, "--target", target, "--sparsity", "0.25", "--dataset", tmp_path / "text.txt", "--dtype",
        "float32", "--measure", "perplexity", "--out", tmp_path / "t",
    )  # fmt: skip
    wanted = {f"model.layers.{i}." for i in layers}

    def targeted(name: str) -> bool:
        return name.endswith(PROJECTIONS) and any(name.startswith(w) for w in wanted)

    twin = pruned_by_torch(STORIES, 0.25, targeted)
    stored = StoredTicket(tmp_path / "t")
    for name, weight in twin.state_dict().items():
        if name in stored.tensors:
            tensor = stored.tensor(name)
            differs = tensor != weight
            # torch breaks ties between equal magnitudes otherwise: what differs is of one magnitude, as many each way
            assert torch.equal((tensor != 0).sum(), (weight != 0).sum())
            assert len({*tensor[differs].abs().tolist(), *weight[differs].abs().tolist()} - {0.0}) <= 1
    expected = math.exp(twin_nll(twin, windows_of(STORIES, text, 512)).mean())
    assert made["metrics"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    model, tokenizer = lottery.load(tmp_path / "t", dtype="float32")
    again = math.exp(twin_nll(model, windows_of(STORIES, text, 512)).mean())
    assert again == pytest.approx(made["metrics"]["perplexity"], rel=1e-6)
    assert tokenizer is not None


@needs_data
@pytest.mark.slow
def test_the_dense_perplexity_is_the_published_one(lottery_json: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    made = lottery_json(
        "prune", "--model", STORIES, "--sparsity", "0", "--dataset", WIKITEXT, "--dtype", "float32",
        "--measure", "perplexity", "--register", "none", "--out", tmp_path / "t",
    )  # fmt: skip
    assert made["metrics"]["perplexity"] == pytest.approx(122.33, abs=0.005)
    assert made["metrics"]["perplexity_ratio"] == 1.0
    assert made["tags"]["winner"] == "yes"
    protocol = json.loads((tmp_path / "t" / "measurements.json").read_text())["protocol"]
    assert (protocol["tokens"], protocol["windows"], protocol["window"]) == (815_070, 1_591, 512)
    assert protocol["bos"] == "at the start"


@needs_data
@pytest.mark.parametrize(("sparsity", "expected"), [(0, 4.44), (0.25, 5.14), (0.5, 45.06)])
def test_stories_of_the_model_s_own_kind(sparsity: float, expected: float, tmp_path: Path) -> None:
    """Every story by itself, BOS first in each window: the figures known of this model under torch's own pruning."""
    lottery.prune(model=STORIES, sparsity=sparsity, measure="none", register="none", out=tmp_path / "t")
    model, tokenizer = lottery.load(tmp_path / "t", dtype="float32")
    stories = (STORIES.parent / "text" / "tinystories_train_excerpt.txt").read_text().split("<|endoftext|>")[:200]
    total, count = 0.0, 0
    for story in stories:
        bos, *ids = tokenizer(story.strip())["input_ids"]
        for first in range(0, len(ids), 511):
            ids_1T = torch.tensor([[bos, *ids[first : first + 511]]])
            total += float(twin_nll(model, ids_1T)) * (ids_1T.shape[1] - 1)
            count += ids_1T.shape[1] - 1
    assert math.exp(total / count) == pytest.approx(expected, rel=2e-3)


def test_mistral_class_models(tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    model = tiny_model(tmp_path / "m", "Mistral", torch.float16)
    made = lottery_json(
        "prune", "--model", model, "--target", "attention+mlp@late", "--dataset", "builtin", "--limit", "4",
        "--dtype", "float32", "--measure", "perplexity,memory", "--register", "none", "--out", tmp_path / "t",
    )  # fmt: skip
    loaded, _ = lottery.load(tmp_path / "t", dtype="source")
    assert type(loaded).__name__ == "MistralForCausalLM" and loaded.dtype == torch.float16
    assert made["tags"]["limited"] == "4" and made["tags"]["winner"] == "not judged: 4 of 218 windows"
    assert made["metrics"]["weights_ratio"] == pytest.approx(2, rel=1e-3)  # float32 in memory, float16 in the file


def test_an_overflow_is_an_outcome_not_a_number(
    tmp_path: Path, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model(tmp_path / "m")
    state = load_file(model / "model.safetensors")
    state["lm_head.weight"] *= 1e37
    state["model.norm.weight"] *= 1e5
    save_file(state, model / "model.safetensors", {"format": "pt"})
    arguments = ("prune", "--model", model, "--target", "late", "--dataset", "builtin", "--limit", "2",
                 "--measure", "perplexity", "--register", "over")  # fmt: skip
    made = lottery_json(*arguments)
    assert made["tags"]["outcome"] == "overflow" and "winner" not in made["tags"]
    assert "perplexity" not in made["metrics"] and all(math.isfinite(v) for v in made["metrics"].values())
    (row,) = [line for line in cli("list", "--name", "over").stdout.splitlines() if line.startswith("| over/1")]
    assert " overflow " in row
    said = cli(*arguments, "--control", 2, "--dtype", "float16")
    assert "outcome: overflow (float16; give dtype=float32 or bfloat16)" in said.stdout
    assert "warning: control=2: no control is measured, the ticket has no perplexity (overflow)\n" in said.stderr
    assert "control 1 of 2" not in said.stderr
    assert "outcome: overflow (bfloat16; give dtype=float32)" in cli(*arguments, "--dtype", "bfloat16").stdout

"""What a plan says of a calibrated method's memory and time, from shapes alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lottery.models.architecture import read_config
from lottery.models.checkpoint import Base
from lottery.models.families import Place
from lottery.models.sources import open_base
from lottery.pruning import cost, rates
from lottery.pruning.capture import Capture
from lottery.runtime.blocks import BlockModel
from lottery.spec import Spec
from lottery.ticket.stored import StoredTicket
from tests.support.families import LABELS, RENAMED, make

FILES = [*((label, "published") for label in LABELS), *((label, "saved") for label in RENAMED)]
PARALLEL = ("cohere", "falcon", "phi")  # attention and MLP get the same input, which a plan does not know
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 2,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(("label", "names"), FILES, ids="-".join)
@torch.inference_mode()
def test_the_gram_matrices_of_a_block_are_those_of_a_run(label: str, names: str, tmp_path: Path) -> None:
    base = open_base(str(make(label, tmp_path / label, names)))
    config = read_config(base.folder).get_text_config()
    model = BlockModel(base, base.places, "bfloat16", "cpu")
    model.record(torch.from_numpy(np.random.default_rng(0).integers(5, 500, (1, 64))))
    chosen = [p for p in base.places if p.layer == 1 and p.prunable]
    planned = cost.groups_of(base, chosen, cost.active_experts(config))
    assert [g.columns for g in planned] == sorted(g.columns for g in planned)
    assert sum(g.numel for g in planned) == sum(base.info(p.name).numel for p in chosen)
    model.load(1)
    matrices = [m for p in chosen for m in model.matrices(p)]
    capture = Capture(model, matrices, with_gram=True)
    with capture.watching(stop=False):
        capture.begin_sample()
        model.run(1, model.embed(torch.ones(1, 64, dtype=torch.long)))
    held = sum(4 * len(statistics.norm_I) ** 2 for statistics, _ in capture.groups(matrices))
    more = sum(g.gram_bytes for g in planned) - held
    assert more == 0 or (label.split("_")[0] in PARALLEL and more == 4 * config.hidden_size**2)


@pytest.fixture
def mistral(tmp_path: Path) -> Base:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    return open_base(str(tmp_path), config_only=True)


def plan_of(
    base: Base, target: tuple[str, ...] = ("attention", "mlp"), **parameters: Any
) -> tuple[Base, Spec, list[Place], cost.Text, Any]:
    spec = Spec.parse(**parameters)
    text = cost.Text(spec.nsamples, 512, "pruned" if spec.method == "sparsegpt" else "dense")
    return base, spec, [p for p in base.places if p.role in target], text, read_config(base.folder)


def test_the_memory_of_mistrals_shape(mistral: Base) -> None:
    """Of one block: q, k, v share 4096 inputs, o has 4096, gate and up share 4096, down has 14336."""
    numel, small, large = 14336 * 4096, 4 * 4096**2, 4 * 14336**2
    states = 8 * 512 * 4096 * 2
    peak = cost.peak(*plan_of(mistral, method="wanda", nsamples=8))
    assert peak == cost.Bytes(cost.LIBRARIES, 0, 4 * (3 * 4096 + 14336), states, 6 * numel)
    peak = cost.peak(*plan_of(mistral, method="sparsegpt", nsamples=8))
    others = 2 * (2 * 14336 * 4096 + 2 * 4096 * 4096 + 2 * 1024 * 4096)  # new weights that the next block shall see
    assert peak == cost.Bytes(cost.LIBRARIES, others, large, states, 8 * 14336**2 + (2 + 1 + 4) * numel)
    peak = cost.peak(*plan_of(mistral, method="refit", nsamples=8))  # gate is scored, up waits
    assert peak == cost.Bytes(cost.LIBRARIES, 2 * numel, 3 * small + large, states, 6 * numel)


def test_each_option_costs_what_it_says(mistral: Base) -> None:
    def total(target: tuple[str, ...] = ("attention", "mlp"), **parameters: Any) -> int:
        return cost.peak(*plan_of(mistral, target, **parameters)).total

    assert total(method="sparsegpt", nsamples=16) - total(method="sparsegpt", nsamples=8) == 8 * 512 * 4096 * 2
    assert total(("attention",), method="sparsegpt") < total(("mlp",), method="sparsegpt")
    assert total(method="wanda") < total(method="refit") < total(method="sparsegpt")


def test_a_tickets_packed_weights_take_memory(tiny: Path, tmp_path: Path, lottery_json: Any) -> None:
    quick = ("--measure", "none", "--register", "none", "--target", "mlp")
    lottery_json("prune", "--model", tiny, *quick, "--out", tmp_path / "t")
    ticket = StoredTicket(tmp_path / "t")
    for role, read in (("mlp", True), ("attention", False)):
        places = [p for p in ticket.places if p.layer == 0 and p.role == role]
        assert cost.read_bytes(ticket, places) == read * sum(ticket.info(p.name).nbytes for p in places)
    assert not cost.read_bytes(open_base(str(tiny)), places)


def test_more_work_takes_more_time(mistral: Base) -> None:
    """With rates that are given, so that nothing is timed."""
    given = rates.Rates(product=1e11, attention_s=0.1, adding=1e11, multiplying=1e11, factorizing=1e11, weight_s=1e-8)

    def seconds(**parameters: Any) -> dict[str, float]:
        return rates.seconds(*plan_of(mistral, **parameters), given)

    refit, sparsegpt = seconds(method="refit", nsamples=8), seconds(method="sparsegpt", nsamples=8)
    numel = 3 * 14336 * 4096 + 2 * 4096**2 + 2 * 1024 * 4096
    one_pass = 1.2 * (512 * numel / 1e11 + 0.1) + 0.002
    grams = 512 * (3 * 4096**2 + 14336**2) / 1e11
    assert refit["calibrate_s"] == pytest.approx(8 * 2 * (one_pass + grams))
    assert sparsegpt["calibrate_s"] == pytest.approx(8 * (3 * one_pass + 2 * grams))  # the last block runs once
    times_columns = (numel - 14336 * 4096) * 4096 + 14336 * 4096 * 14336
    assert refit["prune_s"] == pytest.approx(2 * (23 * times_columns / 1e11 + numel * 1e-8) + 8 * one_pass)
    cubes = 6 * 4096**3 + 14336**3
    assert sparsegpt["prune_s"] == pytest.approx(
        2 * (2.5 * times_columns / 1e11 + cubes / 1e11 + numel * 1e-8) + 8 * one_pass
    )
    assert seconds(method="refit", nsamples=80)["calibrate_s"] == pytest.approx(10 * refit["calibrate_s"])
    assert seconds(method="wanda", nsamples=8)["prune_s"] < sparsegpt["prune_s"] < refit["prune_s"]


def test_experts_share_the_tokens(tmp_path: Path) -> None:
    for names in ("published", "saved"):  # each expert apart, and all in one tensor
        base = open_base(str(make("mixtral", tmp_path / names, names)))
        config = read_config(base.folder)
        places = [p for p in base.places if p.layer == 0 and p.role == "mlp"]
        first, second = cost.groups_of(base, places, cost.active_experts(config))
        assert first.count == second.count == config.num_local_experts == 4
        assert first.share == second.share == config.num_experts_per_tok / 4
        inner = {config.intermediate_size}
        assert {first.columns, second.columns} == {config.hidden_size, *inner}

"""Allocations by outliers and by spectra, through the command, against slow twins; what names a ticket."""

import json
import math
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery.pruning import alpha, owl
from lottery.pruning.spreading import round_to
from lottery.spec import Spec, ticket_id
from lottery.ticket.stored import StoredTicket
from tests.pruning.test_calibrated import CALIBRATED, QUICK, Cli, Json, folder_hashes, samples_of
from tests.runtime.test_experts import fuse
from tests.support import slow_allocations as slow
from tests.support.allocated import by_layer, removed, same_but_for_rounding, sizes, uneven_model
from tests.support.families import make
from tests.support.refused import refused
from tests.support.weights import tensors
from tests.support.words import write_random_words


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven_model(tmp_path_factory.mktemp("models") / "uneven")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_words(tmp_path_factory.mktemp("text") / "calibration.txt")


@pytest.mark.parametrize(
    ("method", "target"), [("magnitude", "all"), ("wanda", "all"), ("repair", "mlp"), ("random", "all")]
)
def test_owl_keeps_more_where_outliers_are(
    method: str,
    target: str,
    model: Path,
    words: Path,
    tmp_path: Path,
    lottery_json: Json,
) -> None:
    look = ("--calibration", words, "--nsamples", 3, "--seqlen", 64)
    asked = ("--model", model, "--method", method, "--target", target, "--sparsity", 0.7, "--allocation", "owl:3:0.1")
    made = lottery_json("prune", *asked, *look, "--out", tmp_path / "t", *QUICK)
    numel = sizes(model, *([".mlp."] if target == "mlp" else []))
    outlier_B = slow.outlier_shares(model, samples_of(model, words, 3, 64), 3, "mlp" if target == "mlp" else "")
    share_B = slow.owl_shares(outlier_B, by_layer(numel), 0.7, 0.1)
    found = removed(tmp_path / "t")
    # Sums in another order may put a score on the other side of the limit.
    assert np.abs(by_layer(found) / by_layer(numel) - share_B).max() < 0.002
    assert sum(found.values()) == round(0.7 * sum(numel.values()))
    assert np.ptp(share_B) == pytest.approx(0.2)
    assert made["metrics"]["calibrate_s"] >= 0  # nothing, where an earlier run kept the norms
    assert made["metrics"]["sparsity_target"] == pytest.approx(0.7, abs=1e-5)
    record = json.loads((tmp_path / "t" / "ticket.json").read_text())
    assert record["spec"]["allocation"] == "owl:3:0.1" and record["spec"]["nsamples"] == 3
    plan = lottery_json("plan", *asked, *look)
    assert plan["ticket"] == made["ticket"] and plan["calibration"]["nsamples"] == 3
    assert "allocation=owl:3:0.1: a run decides how much each layer loses; the plan spreads it evenly" in plan["notes"]


@pytest.mark.parametrize(("method", "width"), [("magnitude", 0.5), ("wanda", 0.3), ("refit", 0.2), ("random", 0.5)])
def test_alpha_keeps_more_where_spectra_have_heavy_tails(
    method: str,
    width: float,
    model: Path,
    words: Path,
    tmp_path: Path,
    lottery_json: Json,
) -> None:
    look = ("--calibration", words, "--nsamples", 2, "--seqlen", 32) if method in CALIBRATED else ()
    asked = ("--model", model, "--method", method, "--sparsity", 0.5, "--allocation", "alpha")
    lottery_json("prune", *asked, *look, "--out", tmp_path / "t", *QUICK)
    numel, state = sizes(model), tensors(model)
    alpha_B = np.array([np.mean([slow.alpha_of(state[n].float().numpy()) for n in numel if f".{b}." in n]) for b in range(4)])  # fmt: skip
    same_but_for_rounding(removed(tmp_path / "t"), numel, slow.alpha_shares(alpha_B, by_layer(numel), 0.5, width), 0.5)


@pytest.mark.parametrize("allocation", ["owl", "alpha"])
def test_where_a_layer_would_lose_more_than_all(
    allocation: str,
    model: Path,
    words: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    word, sparsity = ("owl:3:0.5", 0.7) if allocation == "owl" else ("alpha", 0.9)
    look = ("--calibration", words, "--nsamples", 2, "--seqlen", 32) if allocation == "owl" else ()
    asked = ("--model", model, "--sparsity", sparsity, "--allocation", word)
    said = cli("prune", *asked, *look, "--out", tmp_path / "t", *QUICK).stderr
    warned = re.search(
        rf"warning: allocation={word}: at sparsity={sparsity} more than all of the weights of layers? ([\d, -]+) would go; "
        r"all go, and the others make up for it",
        said,
    )
    assert warned
    numel, found = sizes(model), removed(tmp_path / "t")
    assert sum(found.values()) == round(sparsity * sum(numel.values()))
    share_B = by_layer(found) / by_layer(numel)
    clipped = [int(word) for word in re.findall(r"\d+", warned[1])]
    assert all((share == 1) == (layer in clipped) for layer, share in enumerate(share_B))
    lose = re.search(rf"allocation={word}: the layers lose (.*)", said)
    assert lose and f"{100 * share_B[3]:.1f}%" in lose[1]


@pytest.mark.parametrize("sparsity", [0, 1])
def test_nothing_and_everything_are_spread_evenly(
    sparsity: int, model: Path, tmp_path: Path, lottery_json: Json
) -> None:
    lottery_json("prune", "--model", model, "--sparsity", sparsity, "--allocation", "alpha", "--out", tmp_path / "t", *QUICK)  # fmt: skip
    assert removed(tmp_path / "t") == {n: sparsity * c for n, c in sizes(model).items()}


def test_what_lies_in_no_layer_loses_the_sparsity_itself(model: Path, tmp_path: Path, lottery_json: Json) -> None:
    asked = ("--model", model, "--sparsity", "0.4", "--allocation", "alpha")
    lottery_json("prune", *asked, "--target", "mlp+embeddings+lm_head", "--out", tmp_path / "a", *QUICK)
    found, state = removed(tmp_path / "a"), tensors(model)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert found.pop(name) == round(0.4 * state[name].numel())
    assert len({round(s, 3) for s in by_layer(found) / by_layer(sizes(model, ".mlp."))}) > 1
    lottery_json("prune", *asked, "--target", "embeddings", "--out", tmp_path / "b", *QUICK)
    assert list(removed(tmp_path / "b")) == ["model.embed_tokens.weight"]


@pytest.mark.parametrize(("label", "fused"), [("gpt2", False), ("mixtral", False), ("mixtral", True), ("opt", False)])
@pytest.mark.parametrize("allocation", ["owl", "alpha"])
def test_other_families(label: str, fused: bool, allocation: str, tmp_path: Path, lottery_json: Json) -> None:
    """Transposed matrices, experts in tensors of their own and in one; two runs give the same bytes."""
    model = make(label, tmp_path / "m", "saved")
    if fused:
        fuse(model)
    look = ("--calibration", "self", "--nsamples", 2, "--seqlen", 32) if allocation == "owl" else ()
    for out in ("a", "b"):
        made = lottery_json("prune", "--model", model, "--sparsity", 0.4, "--allocation", allocation, *look, "--out", tmp_path / out, *QUICK)  # fmt: skip
    found = removed(tmp_path / "a")
    numel = {n: math.prod(e["shape"]) for n, e in StoredTicket(tmp_path / "a").entries.items() if n in found}
    assert sum(found.values()) == round(0.4 * sum(numel.values()))
    assert made["metrics"]["sparsity_target"] == pytest.approx(0.4, abs=1e-3)
    share_B = by_layer(found) / by_layer(numel)
    if allocation == "owl":
        assert share_B.max() - share_B.min() == pytest.approx(2 * 0.08, abs=0.01)
    else:
        assert share_B.max() / share_B.min() == pytest.approx(1.5 / 0.5, rel=0.01)
    assert folder_hashes(tmp_path / "a") == folder_hashes(tmp_path / "b")


def test_rows_and_tickets_that_are_pruned_further(model: Path, tmp_path: Path, lottery_json: Json) -> None:
    lottery_json("prune", "--model", model, "--sparsity", 0.3, "--out", tmp_path / "a", *QUICK)
    file = tmp_path / "x.yaml"
    file.write_text("all: 0.6")
    again = ("--model", tmp_path / "a", "--sparsity", 0.6, "--scope", "row", "--allocation", file)
    lottery_json("prune", *again, "--out", tmp_path / "b", *QUICK)
    assert removed(tmp_path / "b") == {n: round(0.6 * c) for n, c in sizes(model).items()}
    lottery_json("prune", "--model", tmp_path / "a", "--sparsity", 0.6, "--allocation", "alpha", "--out", tmp_path / "c", *QUICK)  # fmt: skip
    assert sum(removed(tmp_path / "c").values()) == round(0.6 * sum(sizes(model).values()))


def test_names_and_titles() -> None:
    base = {"config.json": "a" * 64}

    def name(**given: Any) -> str:
        return ticket_id(Spec.parse(**given), base, ["x.weight", "y.weight"])

    assert Spec.parse(allocation="owl:5.0:0.080") == Spec.parse(allocation="owl")
    found = [name(), name(allocation="owl"), name(allocation="owl:5:0.1"), name(allocation="alpha")]
    assert len(set(found)) == 4
    assert name(allocation="uniform") == name()
    assert Spec.parse(allocation="owl").identity_params()["allocation"] == "owl:5:0.08"
    assert "allocation" not in Spec.parse().identity_params()
    assert Spec.parse(allocation="owl", nsamples=8).title == "all 50% owl nsamples=8"
    assert Spec.parse(allocation="alpha", nsamples=8).title == "all 50% alpha"
    assert Spec.parse(method="wanda", allocation="my/best.yaml").title == "all 50% wanda best.yaml"


def test_data_is_looked_at_and_propagation_is_ignored(
    model: Path,
    words: Path,
    tmp_path: Path,
    cli: Cli,
    lottery_json: Json,
) -> None:
    """Of a method that looks at no data the calibration counts if the allocation looks at it."""
    given = ("plan", "--model", model, "--calibration", words, "--nsamples", 2, "--seqlen", 32)
    names = [lottery_json(*given, "--allocation", "owl", *more)["ticket"] for more in ((), ("--nsamples", 3), ("--seed", 1))]  # fmt: skip
    assert len(set(names)) == 3
    said = cli(*given, "--allocation", "owl", "--propagate", "pruned").stderr
    assert "warning: propagate=pruned: ignored, because method=magnitude looks at no data\n" in said
    assert lottery_json(*given, "--allocation", "owl", "--propagate", "pruned")["ticket"] == names[0]
    assert "nsamples=2, seqlen=32: ignored" in cli(*given, "--allocation", "alpha").stderr


def test_a_target_of_one_layer_has_nothing_to_spread(
    model: Path, words: Path, tmp_path: Path, cli: Cli, lottery_json: Json
) -> None:
    look = ("--calibration", words, "--nsamples", 2, "--seqlen", 32)
    asked = ("--model", model, "--target", "mlp@1+embeddings", "--sparsity", 0.3, "--allocation", "owl", *look)
    assert "count the outliers" not in cli("prune", *asked, "--out", tmp_path / "t", *QUICK).stderr
    sizes_of = {n: t.numel() for n, t in tensors(model).items() if n in removed(tmp_path / "t")}
    assert removed(tmp_path / "t") == {n: round(0.3 * c) for n, c in sizes_of.items()} and len(sizes_of) == 4
    assert not [note for note in lottery_json("plan", *asked)["notes"] if "a run decides" in note]


def test_a_model_that_overflows_is_told_the_way_out(words: Path, tmp_path: Path, cli: Cli) -> None:
    from safetensors.torch import save_file

    broken = uneven_model(tmp_path / "m")
    state = tensors(broken)
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        state[name] *= 1e25
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    look = ("--calibration", words, "--nsamples", 2, "--seqlen", 32)
    said = cli("prune", "--model", broken, "--allocation", "owl", *look, "--out", tmp_path / "t", *QUICK, code=2)
    refused(said, "its hidden states are not finite", "give allocation=uniform, which looks at no data")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("allocation", ["owl", "alpha", "file"])
def test_tickets_of_the_embedded_model(allocation: str, tmp_path: Path, lottery_json: Json) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("early: 0.4\nlate: 0.6\n")
    word = file if allocation == "file" else allocation
    how = ("--limit", 4, "--measure", "perplexity", "--control", 1, "--register", f"allocated-{allocation}")
    look = ("--nsamples", 2, "--seqlen", 64) if allocation == "owl" else ()
    made = lottery_json("prune", "--allocation", word, *how, *look, "--out", tmp_path / "t")
    assert made["metrics"]["sparsity_target"] == pytest.approx(0.5, abs=1e-6)
    assert made["metrics"]["control_ratio"] > 0
    name, version = made["model_uri"].removeprefix("models:/").split("/")
    card = mlflow.MlflowClient().get_model_version(name, version).description
    by = {"owl": "allocation owl:5:0.08", "alpha": "allocation alpha", "file": "allocation by a file"}[allocation]
    assert by in card and "the layers were asked to lose 0" in card
    assert allocation != "file" or "the layers were asked to lose 0-3 40.0%, 4-7 60.0%" in card
    again = lottery_json("evaluate", made["model_uri"], "--limit", 4, "--measure", "perplexity")
    assert again["metrics"]["perplexity"] == made["metrics"]["perplexity"]


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1)), min_size=1, max_size=40))
def test_whole_numbers_add_up(tensors_and_shares: list[tuple[int, float]]) -> None:
    wanted = [numel * share for numel, share in tensors_and_shares]
    total = round(sum(wanted))
    counts = round_to(total, wanted)
    assert sum(counts) == total
    for (numel, share), count in zip(tensors_and_shares, counts, strict=True):
        assert 0 <= count <= numel and abs(count - numel * share) < 1 + 1e-9


@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(2, 40), st.floats(0, 2))
def test_the_exponent_of_a_spectrum(seed: int, rows: int, columns: int, power: float) -> None:
    import torch

    weight = np.random.default_rng(seed).standard_normal((rows, columns)) * np.arange(1, columns + 1) ** -power
    found = alpha.exponent(alpha.eigenvalues(torch.from_numpy(weight)))
    assert found == pytest.approx(slow.alpha_of(weight), rel=1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12), st.floats(0.01, 0.5))
def test_what_is_kept_more(outliers: list[int], width: float) -> None:
    outlier_B = np.array(outliers) / 10**4
    extra_B = owl.kept_more(outlier_B, width)
    if np.ptp(outlier_B):
        assert extra_B.max() == pytest.approx(2 * width) and extra_B[outlier_B.argmin()] == 0
        share_B = slow.owl_shares(outlier_B, np.ones(len(outlier_B)), 0.5, width)
        np.testing.assert_allclose(share_B - share_B.max(), -extra_B, atol=1e-9)
    else:
        assert not extra_B.any()


def test_a_matrix_without_a_spectrum_counts_for_nothing() -> None:
    assert math.isnan(alpha.exponent(np.ones(5))) and math.isnan(alpha.exponent(np.ones(1)))
    assert alpha.proportions(np.array([np.nan, 2.0, 3.0]), 0.3).tolist() == [1, 0.7, 1.3]
    assert alpha.proportions(np.array([np.nan, 2.0]), 0.3).tolist() == [1, 1]

"""The method that repairs the residual stream: which matrices write to it, and a twin that runs whole models in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lottery.models.sources import open_base
from lottery.pruning import methods
from lottery.pruning.choosing import Ask
from lottery.pruning.repairing import look
from lottery.pruning.statistics import Accumulator
from lottery.pruning.streaming import open_blocks
from lottery.ticket.stored import StoredTicket
from tests.pruning.test_calibrated import LINEAR, samples_of, text  # noqa: F401  # text is a fixture
from tests.support.families import LABELS, make
from tests.support.models import tiny_model

QUICK = ("--measure", "none", "--register", "none")
Json = Callable[..., dict[str, Any]]
# family -> the matrices that write to the residual stream; of all others none does: a norm comes between
LLAMA = ("o_proj", "down_proj")
WRITERS: dict[str, tuple[str | None, str | None]] = {
    "phi": ("dense", "fc2"),
    "gpt2": ("c_proj", "c_proj"),
    "gpt_neox": ("dense", "dense_4h_to_h"),
    "opt": ("out_proj", "fc2"),
    "opt_projected": ("out_proj", None),  # its norm follows the addition
    "falcon": ("dense", "dense_4h_to_h"),
    "falcon_new": ("dense", "dense_4h_to_h"),
    "gemma2": (None, None),
    "gemma3_text": (None, None),
    "olmo2": (None, None),
    "mixtral": ("o_proj", None),  # many experts write together
    "qwen2_moe": ("o_proj", None),
    "olmoe": ("o_proj", None),
}


def last_part(path: str | None) -> str | None:
    return path and path.rpartition(".")[2]


@torch.inference_mode()
@pytest.mark.parametrize("label", LABELS)
def test_what_writes_to_the_stream_is_found(label: str, tmp_path: Path) -> None:
    base = open_base(str(make(label, tmp_path / label, "saved")))
    ids_NT = torch.randint(5, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    model = open_blocks(base, ids_NT, "cpu")
    hidden = model.embed(ids_NT[:1])
    for block in range(model.layers):
        model.load(block)
        places = [p for p in base.places if p.layer == block and p.role in ("attention", "mlp")]
        roles = {m.module: p.role for p in places for m in model.matrices(p)}
        found = look(model, block, roles, hidden)
        if not (label == "qwen3_moe" and block):  # some of its blocks have experts, others have none
            assert (last_part(found.attention), last_part(found.mlp)) == WRITERS.get(label, LLAMA)
        assert sorted(path for group in found.groups for path in group) == sorted(roles)
        hidden = model.run(block, hidden)
        model.unload(block)


@torch.inference_mode()
def repaired_in_memory(model: Path, ids_NT: torch.Tensor, sparsity: float) -> Any:
    """Two whole models run once for each input of a block; everything is seen by hooks."""
    from transformers import AutoModelForCausalLM

    dense, twin = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval() for _ in range(2))
    for block in range(twin.config.num_hidden_layers):
        for group in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
            layer = twin.model.layers[block]
            modules = {name: getattr(layer.self_attn, name, None) or getattr(layer.mlp, name) for name in group}
            of_inputs = Accumulator(next(iter(modules.values())).in_features, True, "cpu")
            for ids_T in ids_NT:
                was, now = seen(dense, block, ids_T), seen(twin, block, ids_T)
                goal = None
                if group == ("o_proj",):
                    goal = (was["in"] + was["o_proj"]).float() - now["in"].float()
                if group == ("down_proj",):
                    goal = was["out"].float() - now["in"].float() - now["o_proj"].float()
                of_inputs.add(now[f"{group[0]} input"], goal)
            statistics = of_inputs.finish()
            for module in modules.values():
                ask = Ask(round(sparsity * module.weight.numel()))
                solved = methods.repair(module.weight.float(), statistics, ask)
                module.weight.data = solved.weight_OI.to(module.weight.dtype)
    return twin


def seen(model: Any, block: int, ids_T: torch.Tensor) -> dict[str, torch.Tensor]:
    """What goes into a block and its matrices and comes out, [tokens, width]."""
    found: dict[str, torch.Tensor] = {}
    layer, hooks = model.model.layers[block], []

    def note(name: str) -> Any:
        def hook(_: Any, given: tuple[Any, ...], out: Any) -> None:
            found[name], found[f"{name} input"] = out.flatten(0, -2), given[0].flatten(0, -2)

        return hook

    for path, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear):
            hooks.append(module.register_forward_hook(note(path.rpartition(".")[2])))
    hooks.append(layer.register_forward_hook(note("layer")))
    model(ids_T[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return found | {"in": found["layer input"], "out": found["layer"]}


def test_the_ticket_is_the_model_that_is_repaired_whole_in_memory(
    text: Path,  # noqa: F811
    tmp_path: Path,
    lottery_json: Json,
) -> None:
    model = tiny_model(tmp_path / "m")
    lottery_json(
        "prune", "--model", model, "--method", "repair", "--sparsity", "0.6", "--calibration", text, "--nsamples", "3",
        "--seqlen", "64", "--out", tmp_path / "t", *QUICK,
    )  # fmt: skip
    state = repaired_in_memory(model, samples_of(model, text, 3, 64), 0.6).state_dict()
    stored = StoredTicket(tmp_path / "t")
    differ = total = 0
    for name in filter(LINEAR.fullmatch, stored.tensors):
        differ += int(((stored.tensor(name) != 0) != (state[name] != 0)).sum())
        total += state[name].numel()
        gap = (stored.tensor(name).float() - state[name].float()).norm() / state[name].float().norm()
        assert gap < 0.02, name
    assert differ <= total / 1000


@pytest.mark.slow
def test_it_loses_less_than_refit(lottery_json: Json) -> None:
    """On the embedded model and text, measured on all windows: 1.13 against 1.22 at 70%."""
    found = {
        method: lottery_json(
            "prune", "--method", method, "--sparsity", "0.7", "--measure", "perplexity", "--register", "none",
            "--nsamples", "8", "--propagate", "pruned",
        )["metrics"]
        for method in ("refit", "repair")
    }  # fmt: skip
    assert found["repair"]["perplexity_ratio_hi"] < found["refit"]["perplexity_ratio_lo"]


def test_a_model_whose_blocks_add_norms_is_refitted_with_a_line(
    tmp_path: Path, cli: Callable[..., Result], lottery_json: Json
) -> None:
    model = make("gemma2", tmp_path / "m", "saved")
    given = ("--calibration", "self", "--nsamples", "2", "--seqlen", "32", *QUICK)
    result = cli("prune", "--model", model, "--method", "repair", *given, "--out", tmp_path / "t")
    assert result.stderr.count("it aims those matrices at their own dense outputs") == 1


def test_propagation_of_the_dense_model_is_refused(cli: Callable[..., Result]) -> None:
    result = cli("prune", "--method", "repair", "--propagate", "dense", *QUICK, code=2)
    assert (
        result.stderr.startswith("Error: propagate=dense: method=repair")
        or "propagate=dense: method=repair" in result.stderr
    )

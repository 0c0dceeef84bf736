"""Every family, as transformers saves it and as it is published, through the command: every target that it has."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from torch import nn

import lottery
from lottery.measuring import perplexity
from lottery.runtime import decoding
from lottery.ticket.stored import StoredTicket
from tests.support import published
from tests.support.families import LABELS, RENAMED, logits, make, tiny_class, tiny_config

QUICK = ("--measure", "none", "--register", "none", "--dtype", "float32")
TARGETS = ("all", "attention", "mlp", "early", "late", "embeddings", "lm_head", "attention@1+mlp@early+lm_head")


@pytest.fixture(
    scope="module",
    params=[*((label, "published") for label in LABELS), *((label, "saved") for label in RENAMED)],
    ids="-".join,
)
def tiny_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    label, names = request.param
    return label, names, make(label, tmp_path_factory.mktemp("family") / label, names)


@pytest.fixture(scope="module", params=LABELS)
def saved_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """In transformers' own layers, in float32."""
    import transformers

    folder = make(request.param, tmp_path_factory.mktemp("saved") / request.param, "saved")
    kind = getattr(transformers, tiny_class(request.param).__name__)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def role(name: str, tensor: torch.Tensor) -> str | None:
    """Independent of the tables: by the words that occur in a name."""
    if tensor.dim() not in (2, 3) or re.search(
        r"(moe|mlp)\.gate\.|expert_gate|wpe|embed_positions|project_|_norm\.", name
    ):
        return None
    if re.search(r"wte|embed_tokens|embed_in\b|word_embeddings", name):
        return "embeddings"
    if re.search(r"lm_head|embed_out", name):
        return "lm_head"
    return "attention" if re.search(r"attn|attention", name) else "mlp"


def layer(name: str) -> int:
    return int(re.search(r"\.(\d+)\.", f".{name}")[1])  # type: ignore[index]  # None: the test fails


def is_targeted(target: str, name: str, tensor: torch.Tensor, layers: int) -> bool:
    half = layers // 2
    for term in target.split("+"):
        component, _, where = term.partition("@")
        if term in ("early", "late"):
            component, where = "all", term
        mine = role(name, tensor)
        if mine == component or (component == "all" and mine in ("attention", "mlp")):
            if not where:
                return True
            if {"early": layer(name) < half, "late": layer(name) >= half, "1": layer(name) == 1}[where]:
                return True
    return False


def slow_twin(weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Half of the weights go, the smallest first, of equal ones the first in order of rows."""
    matrix = weight.T if transposed else weight
    flat = matrix.reshape(-1).clone()
    flat[flat.float().abs().sort(stable=True).indices[: round(0.5 * flat.numel())]] = 0
    flat = flat.reshape(matrix.shape)
    return (flat.T if transposed else flat).contiguous()


def build(folder: Path, state: dict[str, torch.Tensor], untie: bool) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    if untie:
        config.tie_word_embeddings = False
    model, found = getattr(transformers, config.architectures[0]).from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("target", TARGETS)
def test_a_ticket_equals_the_slow_twin(
    target: str, tiny_family: tuple[str, str, Path], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    label, _, folder = tiny_family
    state = load_file(folder / "model.safetensors")
    table = next(n for n, t in state.items() if role(n, t) == "embeddings")
    config = json.loads((folder / "config.json").read_text())
    tied = tiny_config(label).tie_word_embeddings
    state = {
        n: t
        for n, t in state.items()
        if not re.search(r"\.(attn|attention)\.(bias|masked_bias)$|inv_freq", n)
        and not (tied and n == "lm_head.weight")
    }
    untie = tied and "lm_head" in target
    if untie:
        state["lm_head.weight"] = state[table].clone()
    said = cli("prune", "--model", folder, "--target", target, "--out", tmp_path / "t", *QUICK).stderr
    assert ("the head is tied" in said) == untie
    assert ("both are pruned" in said) == (tied and target == "embeddings")
    conv = config["model_type"] == "gpt2"
    wanted = {n for n, t in state.items() if is_targeted(target, n, t, 3)}
    for name in wanted:
        state[name] = slow_twin(state[name], conv and role(name, state[name]) in ("attention", "mlp"))

    stored = StoredTicket(tmp_path / "t")
    assert {n for n, e in stored.entries.items() if "requested" in e} == wanted
    assert stored.tensors.keys() == state.keys()
    for name, twin in state.items():
        assert torch.equal(stored.tensor(name).view(torch.int16), twin.view(torch.int16)), name
    assert json.loads((tmp_path / "t" / "config.json").read_text()).get("tie_word_embeddings", tied) == (
        tied and not untie
    )
    model, _ = lottery.load(tmp_path / "t", dtype="float32")
    assert torch.equal(logits(model), logits(build(folder, state, untie)))
    heads = {model.get_input_embeddings().weight.data_ptr(), model.get_output_embeddings().weight.data_ptr()}
    assert len(heads) == (1 if tied and not untie else 2)


def walked(model: Any) -> dict[str | None, int]:
    """Parameters by role, found by walking over the modules of the model in memory."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    counts: dict[str | None, int] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        names = [type(m).__name__ for n, m in model.named_modules() if path == n or path.startswith(f"{n}.")]
        for p in module.parameters(recurse=False):
            if id(p) in seen:
                continue
            seen.add(id(p))
            if module is table:
                kind: str | None = "embeddings"
            elif (
                p.dim() < 2
                or isinstance(module, nn.Embedding)
                or re.search("Router|Norm", names[-1])
                or path.endswith("expert_gate")
            ):
                kind = None
            elif module is head:
                kind = "lm_head"
            elif re.search(r"project_(in|out)$", path):
                kind = None
            else:
                kind = "attention" if any("Attention" in n for n in names) else "mlp"
            counts[kind] = counts.get(kind, 0) + p.numel()
    return counts


def test_every_parameter_is_accounted_for(
    tiny_family: tuple[str, str, Path], tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    label, names, folder = tiny_family
    expected = walked(tiny_class(label)(tiny_config(label)))
    (tmp_path / "bare").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "bare")
    for source in (folder, tmp_path / "bare"):
        plan = lottery_json("plan", "--model", source)
        total = sum(expected.values())
        assert plan["parameters"] == total
        assert plan["shares"] == pytest.approx({r: n / total for r, n in expected.items() if r})
    extra = re.compile(r"\.(attn|attention)\.(bias|masked_bias)|inv_freq|lm_head\.weight")
    assert all(extra.search(name) for name in lottery_json("plan", "--model", folder)["dropped"])
    if names == "published" and label in ("gpt2", "gpt_neox", "llama", "falcon"):
        assert lottery_json("plan", "--model", folder)["dropped"]


@pytest.mark.parametrize(
    ("label", "target", "count"),
    [
        ("phi", "fc1", 3), ("phi", "dense@late", 2), ("phi3", "qkv_proj", 3), ("gpt2", "c_proj", 6), ("gpt2", "mlp.c_proj", 3),
        ("falcon", "query_key_value", 3), ("mixtral", "w2@0", None), ("qwen2_moe", "shared_expert.gate_proj", 3),
        ("opt", "out_proj+fc2@1", 4), ("gpt_neox", "dense_h_to_4h", 3),
    ],
)  # fmt: skip
def test_projections_go_by_their_family_s_names(
    label: str, target: str, count: int | None, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    plan = lottery_json("plan", "--model", make(label, tmp_path / label, "saved"), "--target", target)
    targeted = [n for n, e in plan["tensors"].items() if "requested" in e]
    assert len(targeted) == (count or tiny_config(label).num_local_experts)


SHARES = {  # attention, MLP, embeddings, head: of all parameters, in percent
    "mistralai/Mistral-7B-v0.1": (18.5, 77.8, 1.8, 1.8),
    "Qwen/Qwen2.5-7B": (10.8, 74.9, 7.2, 7.2),
    "Qwen/Qwen2.5-0.5B": (8.9, 63.5, 27.6, None),
    "HuggingFaceTB/SmolLM2-1.7B": (23.5, 70.6, 5.9, None),
    "microsoft/phi-2": (30.2, 60.4, 4.7, 4.7),
}


@pytest.mark.parametrize("name", list(published.CONFIGS))
def test_plan_of_a_published_configuration_alone(
    name: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    folder = tmp_path / name.split("/")[1]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published.CONFIGS[name]))
    plan = lottery_json("plan", "--model", folder)
    assert plan["parameters"] == published.PARAMETERS[name]
    assert plan["ticket"] is None and plan["sparsity_target"] == pytest.approx(0.5)
    shares = plan["shares"]
    for found, expected in zip(("attention", "mlp", "embeddings", "lm_head"), SHARES.get(name, ()), strict=False):
        if expected is None:
            assert plan["tied"] and found not in shares
        else:
            assert 100 * shares[found] == pytest.approx(expected, abs=0.051)
    assert "no model.safetensors" in cli("prune", "--model", folder, code=2).stderr


def test_the_loss_in_slices_is_that_of_the_bare_forward_pass(saved_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through each family's own head: scaled and capped logits, a bias, a projection."""
    monkeypatch.setattr(perplexity, "LOGIT_BYTES", 0)
    monkeypatch.setattr(perplexity, "LEAST_POSITIONS", 10)  # slices of 5 positions of two windows
    ids_NT = torch.randint(5, 4000, (2, 33))
    with torch.inference_mode():
        found = perplexity.nll_of_tokens(saved_model, ids_NT)
        whole = saved_model(ids_NT, use_cache=False).logits
        again = saved_model(ids_NT, use_cache=False).logits
    assert torch.equal(whole, again)  # its layers are as they were
    twin = -whole[:, :-1].double().log_softmax(-1).gather(-1, ids_NT[:, 1:, None])[..., 0]
    assert found.shape == (2, 32) and torch.allclose(found.double(), twin, rtol=1e-5, atol=1e-5)


def test_decoding_over_a_cache_of_fixed_size_is_the_same(saved_model: Any) -> None:
    """What a GPU does, here on the CPU, twice over one cache; past the end of a sliding window (64 tokens)."""
    static = decoding.Decoder(saved_model, 80, static=True)

    def tokens(decoder: decoding.Decoder) -> list[int]:
        token_11 = decoder.begin(torch.arange(5, 65)[None])
        return [int(token_11), *(int(token_11 := decoder.next(token_11)) for _ in range(8))]

    with torch.inference_mode():
        assert tokens(static) == tokens(decoding.Decoder(saved_model, 80)) == tokens(static)
    # transformers' sliding layers count in Python, and a CUDA graph would keep that number
    assert not any(hasattr(layer, "cumulative_length_int") for layer in static.cache.layers)


@pytest.mark.parametrize("label", ["mixtral", "qwen2_moe"])
def test_experts_of_any_width(label: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """One product of all experts wants rows of whole 16 bytes; these have 200 and 72 in 16 bits, and 400 and 144 in 32."""
    folder = make(label, tmp_path / label, "saved")
    common = (
        "--dataset",
        "builtin",
        "--window",
        64,
        "--limit",
        4,
        "--measure",
        "perplexity,samples",
        "--device",
        "cpu",
    )
    perplexity = {}
    for dtype in ("bfloat16", "float16", "float32"):
        prune = ("prune", "--model", folder, "--out", tmp_path / "t", "--register", "none", *common, "--dtype", dtype)
        result = cli(*prune, "--json")
        assert ("its experts are computed one after the other" in result.stderr) == (dtype != "float32")
        perplexity[dtype] = json.loads(result.stdout)["metrics"]["perplexity"]
    assert perplexity["bfloat16"] == pytest.approx(perplexity["float32"], rel=0.01)
    assert perplexity["float16"] == pytest.approx(perplexity["float32"], rel=0.01)


def test_each_of_many_models_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, as a study decodes them: of one class, in other shapes."""
    import transformers

    graphs: list[Any] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, options: compile(step, backend=compiler))
    for count in range(1, 12):
        config = transformers.LlamaConfig(
            vocab_size=8 * count,
            hidden_size=16,
            intermediate_size=8 * count,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        decoder = decoding.Decoder(transformers.LlamaForCausalLM(config).eval(), 16, static=True, graphs=True)
        with torch.inference_mode():
            decoder.next(decoder.begin(torch.tensor([[1, 2]])))
        assert len(graphs) == count

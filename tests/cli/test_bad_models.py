"""Models that cannot be used, through the command: one line that names the parameter and the file; exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from tests.support.forks import Forks
from tests.support.models import tiny_model
from tests.support.refused import refused
from tests.support.store import only_run


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


def test_a_folder_without_safetensors(broken: Path, cli: Callable[..., Result]) -> None:
    (broken / "model.safetensors").unlink()
    refused(cli("prune", "--model", broken, code=2), "model=", "no model.safetensors")
    (broken / "pytorch_model.bin").write_bytes(b"")
    refused(cli("prune", "--model", broken, code=2), "model=", "pickles", "convert")
    (broken / "config.json").unlink()
    refused(cli("prune", "--model", broken, code=2), "model=", "no config.json")


def test_a_truncated_shard(broken: Path, cli: Callable[..., Result]) -> None:
    whole = (broken / "model.safetensors").read_bytes()
    for size in (0, 5, 300, len(whole) - 1):
        (broken / "model.safetensors").write_bytes(whole[:size])
        refused(cli("prune", "--model", broken, code=2), "model.safetensors", "truncated")


def test_a_corrupt_header(broken: Path, cli: Callable[..., Result]) -> None:
    whole = bytearray((broken / "model.safetensors").read_bytes())
    whole[10:20] = b"\xff" * 10
    (broken / "model.safetensors").write_bytes(whole)
    refused(cli("prune", "--model", broken, code=2), "model.safetensors", "truncated or not a safetensors file")


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_a_weight_that_is_not_a_number(method: str, broken: Path, cli: Callable[..., Result], store: Path) -> None:
    state = load_file(broken / "model.safetensors")
    state["model.layers.2.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    result = cli("prune", "--model", broken, "--dataset", "builtin", "--method", method, code=2)
    refused(result, "model.layers.2.mlp.up_proj.weight", "NaN")
    run = only_run()
    assert run.info.status == "FAILED" and "model.layers.2.mlp.up_proj.weight" in run.data.tags["reason"]
    assert not mlflow.MlflowClient().search_model_versions("name = 'ticket-broken'")
    assert not list((store / "home" / "tickets").glob(".*.partial"))


def test_an_unknown_architecture_and_an_unknown_tensor(broken: Path, cli: Callable[..., Result]) -> None:
    state = load_file(broken / "model.safetensors")
    state["model.layers.0.mlp.extra.weight"] = torch.ones(4, 4)
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    refused(cli("prune", "--model", broken, code=2), "model.layers.0.mlp.extra.weight")
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "mamba"}
    (broken / "config.json").write_text(json.dumps(config))
    refused(cli("prune", "--model", broken, code=2), "'mamba'", "llama")


def test_a_missing_tensor(broken: Path, cli: Callable[..., Result]) -> None:
    state = load_file(broken / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    refused(cli("prune", "--model", broken, "--measure", "none", code=2), "missing keys", "up_proj")
    assert not mlflow.MlflowClient().search_model_versions("name = 'ticket-broken'")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "x"}, {"num_attention_heads": 0}, {"rope_parameters": 5}, {"hidden_act": "nope"},
        {"num_hidden_layers": -1}, {"max_position_embeddings": "abc"}, {"architectures": ["Evil"]}, {"hidden_size": 64},
        {"architectures": ["LlamaConfig"]},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_model(change: dict[str, object], broken: Path, cli: Callable[..., Result]) -> None:
    config = json.loads((broken / "config.json").read_text()) | change
    (broken / "config.json").write_text(json.dumps(config))
    refused(cli("prune", "--model", broken, "--dataset", "builtin", code=2), "model=")


def test_files_beside_the_weights_that_are_broken(broken: Path, cli: Callable[..., Result]) -> None:
    (broken / "generation_config.json").write_text("{")
    refused(cli("prune", "--model", broken, "--dataset", "builtin", code=2), "generation_config.json")
    (broken / "generation_config.json").unlink()
    (broken / "tokenizer.json").write_text("{}")
    refused(cli("prune", "--model", broken, "--dataset", "builtin", code=2), "tokenizer")
    (broken / "config.json").write_text("{")
    refused(cli("prune", "--model", broken, "--dataset", "builtin", code=2), "config.json")
    (broken / "model.safetensors").rename(broken / "x")
    (broken / "config.json").write_text('{"model_type": "llama"}')
    (broken / "model.safetensors.index.json").write_text('{"weight_map": []}')
    refused(cli("prune", "--model", broken, code=2), "weight_map")


def test_a_tokenizer_of_another_model(tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = tiny_model(tmp_path / "m", vocab_size=1000)
    refused(cli("prune", "--model", model, "--dataset", "builtin", code=2), "tokenizer", "1000")


def test_code_in_a_model_folder_never_runs(broken: Path, tmp_path: Path, forks: Forks) -> None:
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tok: pass\nclass Conf: pass\n")
    for file, change in (
        ("tokenizer_config.json", {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["evil.Tok", None]}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Conf", "AutoModelForCausalLM": "evil.Tok"}}),
    ):
        content = json.loads((broken / file).read_text()) | change
        (broken / file).write_text(json.dumps(content))
    how = ("--dataset", "builtin", "--limit", "1", "--measure", "perplexity", "--register", "none")
    (done,) = forks.run(("prune", "--model", broken, *how, "--out", tmp_path / "t"), typed="yes\n" * 50)
    assert "evil" not in done["out"] and done["code"] in (0, 2), done
    assert not (tmp_path / "ran").exists()


def test_an_index_that_climbs_out(broken: Path, cli: Callable[..., Result]) -> None:
    (broken / "model.safetensors").rename(broken.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(cli("prune", "--model", broken, code=2), "'../model.safetensors'", "not a safetensors file next to it")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("moved", ("is in one.safetensors, but it is not there",)),
        ("unknown", ("holds 'model.norm.weight', which", "does not list")),
        ("twice", ("'model.norm.weight' is both in", "one.safetensors", "two.safetensors")),
        ("missing", ("two.safetensors", "no such file")),
        ("pickle", ("three.bin", "safetensors")),
    ],
)
def test_shards_that_disagree_with_their_index(
    fault: str, says: tuple[str, ...], broken: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    state = load_file(broken / "model.safetensors")
    (broken / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"one.safetensors": names[:10], "two.safetensors": names[10:]}  # the final norm is the last name
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    if fault == "moved":
        weight_map["model.norm.weight"] = "one.safetensors"
    elif fault == "unknown":
        del weight_map["model.norm.weight"]
    elif fault == "twice":
        parts["one.safetensors"].append("model.norm.weight")
    elif fault == "pickle":
        weight_map["model.norm.weight"] = "three.bin"
    for shard, part in parts.items():
        save_file({name: state[name] for name in part}, broken / shard, {"format": "pt"})
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if fault == "missing":
        (broken / "two.safetensors").unlink()
    out = tmp_path / "t"
    command = ("prune", "--model", broken, "--measure", "none", "--register", "none", "--out", out)
    refused(cli(*command, code=2), *says)
    assert not out.exists()


def test_a_config_that_promises_too_much(broken: Path, cli: Callable[..., Result]) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9, "layer_types": None}))
    refused(cli("plan", "--model", broken, code=2), "model=", "1000000000 layers")
    state = load_file(broken / "model.safetensors")
    (broken / "config.json").write_text(json.dumps(config))
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"][:-4].contiguous()
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    refused(cli("plan", "--model", broken, code=2), "mismatched keys", "model.layers.1.mlp.up_proj.weight")
    (broken / "model.safetensors").rename(broken / "one.safetensors")
    refused(cli("plan", "--model", broken, code=2), "model=", "no model.safetensors")
    weight_map = dict.fromkeys(state, "one.safetensors") | {"model.norm.weight": "two\ud800.safetensors"}
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(cli("plan", "--model", broken, code=2), "weight_map")


def test_a_loop_of_links(broken: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for command in (("prune", "--model"), ("plan", "--model"), ("verify", "--ticket"), ("evaluate", "--ticket")):
        refused(cli(*command, tmp_path / "loop", code=2), f"{command[1].strip('-')}={tmp_path / 'loop'}")
    refused(cli("prune", "--model", broken, "--out", tmp_path / "loop", "--measure", "none", code=2), "out=")
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").symlink_to(broken / "model.safetensors")
    refused(cli("prune", "--model", broken, "--measure", "none", code=2), "model")


def test_a_base_without_a_tokenizer(broken: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    refused(cli("prune", "--model", broken, "--dataset", "builtin", code=2), "measure=all", "no tokenizer")
    out = tmp_path / "t"
    cli("prune", "--model", broken, "--measure", "none", "--register", "none", "--out", out)
    refused(cli("generate", "--ticket", out, code=2), "no tokenizer")

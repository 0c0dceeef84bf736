"""Everything a user may get wrong: one line that names the parameter, the value and the way out; exit code 2."""

import errno
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

import lottery
from lottery.errors import InputError
from lottery.models import checkpoint, devices
from lottery.runtime import layers
from tests.support.models import tiny_model
from tests.support.store import only_run


def refused(result: Result, *says: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output
    assert result.stdout == ""
    for word in says:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", "atention"), ("target=atention", "attention")),
        (("--method", "wanda"), ("method=wanda", "magnitude", "random")),
        (("--sparsity", "1.2"), ("sparsity=1.2", "from 0 to 1")),
        (("--sparsity", "nan"), ("sparsity=nan",)),
        (("--quantize", "int4"), ("quantize=int4", "int8", "fp8")),
        (("--quantize", "fp8", "--storage", "mask"), ("quantize=fp8", "storage=packed")),
        (("--window", "4096"), ("window=4096", "128")),
        (("--dataset", "no/such.txt"), ("dataset=no/such.txt",)),
        (("--model", "./no/such"), ("model=./no/such", "builtin", "hub id")),
        (("--target", "mlp@" + "9" * 5000), ("target=mlp@999", "names no layers")),
        (("--model", "x" * 5000), ("File name too long",)),
        (("--scope", "globl"), ("scope=globl", "global")),
        (("--pattern", "2:4", "--sparsity", "0.6"), ("pattern=2:4", "sparsity=0.6", "0.5")),
        (("--pattern", "4:8", "--scope", "global"), ("pattern=4:8", "scope=global")),
        (("--pattern", "4:8", "--target", "mlp"), ("pattern=4:8", "down_proj", "100", "groups of 8")),
        (("--register", "a/b"), ("register=a/b",)),
        (("--register", "a@b"), ("register=a@b",)),
        (("--bogus", "1"), ("--bogus",)),
        (("--device", "cuda"), ("device=cuda", "cpu")),
    ],
)
def test_a_wrong_parameter(
    arguments: tuple[str, str], says: tuple[str, ...], tiny: Path, cli: Callable[..., Result]
) -> None:
    if arguments == ("--device", "cuda") and torch.cuda.is_available():
        arguments = ("--device", "tpu")
        says = ("device=tpu",)
    refused(cli("prune", "--model", tiny, "--dataset", "builtin", *arguments, code=2), *says)


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


def test_a_folder_without_safetensors(broken: Path, cli: Callable[..., Result]) -> None:
    (broken / "model.safetensors").unlink()
    refused(cli("prune", "--model", broken, code=2), "model=", "no model.safetensors")
    (broken / "pytorch_model.bin").write_bytes(b"")
    refused(cli("prune", "--model", broken, code=2), "model=", "pickled", "convert")
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
        {"architectures": None},
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


def test_code_in_a_model_folder_never_runs(broken: Path, tmp_path: Path) -> None:
    (broken / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tok: pass\nclass Conf: pass\n")
    for file, change in (
        ("tokenizer_config.json", {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["evil.Tok", None]}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Conf", "AutoModelForCausalLM": "evil.Tok"}}),
    ):
        content = json.loads((broken / file).read_text()) | change
        (broken / file).write_text(json.dumps(content))
    command = [sys.executable, "-m", "lottery", "prune", "--model", str(broken), "--dataset", "builtin", "--limit", "1"]
    command += ["--measure", "perplexity", "--register", "none", "--out", str(tmp_path / "t")]
    subprocess.run(command, input="yes\n" * 50, text=True, capture_output=True)
    assert not (tmp_path / "ran").exists()


def test_an_index_that_climbs_out(broken: Path, cli: Callable[..., Result]) -> None:
    (broken / "model.safetensors").rename(broken.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(cli("prune", "--model", broken, code=2), "'../model.safetensors'", "not a safetensors file beside it")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("moved", ("is in one.safetensors, where it is not",)),
        ("unknown", ("holds 'model.norm.weight', which", "does not know")),
        ("twice", ("'model.norm.weight' stands in", "one.safetensors", "two.safetensors")),
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


def test_an_error_while_much_is_in_flight_ends(tmp_path: Path) -> None:
    """A disk that is full when the reader is far ahead: whoever waits for memory is told."""
    model = tiny_model(
        tmp_path / "m",
        vocab_size=64,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=12,
        tie_word_embeddings=True,
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/x.db"}
    connect = [sys.executable, "-c", "from lottery.registry import store; store.connect()"]
    subprocess.run(connect, env=environment, check=True)
    command = [sys.executable, "-m", "lottery", "prune", "--model", str(model), "--measure", "none"]
    command += ["--register", "none", "--out", str(tmp_path / "t")]
    failed = subprocess.run(
        command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert failed.returncode == 1 and "File too large; make room" in failed.stderr.splitlines()[-1], failed.stderr
    assert not (tmp_path / "t").exists() and not (tmp_path / ".t.partial").exists()


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


def test_a_file_that_is_replaced_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same size, same time, same inode: as an archive unpacked over another one leaves it."""
    from lottery.files import hashes

    monkeypatch.setattr(hashes, "LARGE", 1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    about = file.stat()
    first = hashes.sha256_of_files([file])
    assert hashes.sha256_of_files([file]) == first
    with open(file, "r+b") as f:
        f.write(b"two")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert hashes.sha256_of_files([file]) != first


def test_a_loop_of_links(broken: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for command in (("prune", "--model"), ("plan", "--model"), ("verify", "--ticket"), ("evaluate", "--ticket")):
        refused(cli(*command, tmp_path / "loop", code=2), f"{command[1].strip('-')}={tmp_path / 'loop'}")
    refused(cli("prune", "--model", broken, "--out", tmp_path / "loop", "--measure", "none", code=2), "out=")
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").symlink_to(broken / "model.safetensors")
    refused(cli("prune", "--model", broken, "--measure", "none", code=2), "model")


def test_texts_that_cannot_serve(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    refused(
        cli("prune", "--model", tiny, "--dataset", tmp_path / "short.txt", code=2), "short.txt", "fewer than one window"
    )
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    refused(cli("prune", "--model", tiny, "--dataset", tmp_path / "latin.txt", code=2), "latin.txt", "UTF-8")
    (tmp_path / "rows.jsonl").write_text('{"txt": "x"}\n')
    refused(
        cli("prune", "--model", tiny, "--dataset", tmp_path / "rows.jsonl", code=2), "rows.jsonl", "no column 'text'"
    )
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    refused(cli("prune", "--model", tiny, "--dataset", tmp_path / "x.parquet", code=2), "x.parquet")
    (tmp_path / "half.jsonl").write_text(json.dumps({"text": "\ud83d word " * 2000}))
    refused(cli("prune", "--model", tiny, "--dataset", tmp_path / "half.jsonl", code=2), "half.jsonl", "UTF-8")
    refused(cli("prune", "--model", tiny, "--dataset", tmp_path, code=2), "not builtin, wikitext2 or a file")


def test_a_base_without_a_tokenizer(broken: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    refused(cli("prune", "--model", broken, "--dataset", "builtin", code=2), "measure=all", "no tokenizer")
    out = tmp_path / "t"
    cli("prune", "--model", broken, "--measure", "none", "--register", "none", "--out", out)
    refused(cli("generate", "--ticket", out, code=2), "no tokenizer")


def test_tickets_that_are_not_there(cli: Callable[..., Result], tmp_path: Path) -> None:
    for command in ("verify", "generate", "evaluate"):
        refused(cli(command, "--ticket", "models:/nothing/1", code=2), "models:/nothing/1", "not in the registry")
        refused(cli(command, "--ticket", tmp_path, code=2), "no ticket.json")
    refused(cli("verify", "--ticket", "models:/nothing", code=2), "models:/NAME/VERSION")


def test_values_that_generating_cannot_take(cli: Callable[..., Result], tmp_path: Path) -> None:
    for option in (
        ("--temperature", "1e-45"), ("--temperature", "-1"), ("--temperature", "nan"), ("--tokens", "0"),
        ("--top_p", "0"), ("--top_p", "1.1"), ("--top_p", "nan"), ("--top_k", "-1"),
        ("--top_p", "0.9"), ("--top_k", "5"),  # without a temperature
    ):  # fmt: skip
        refused(cli("generate", "--ticket", tmp_path, *option, code=2), option[0].strip("-"))
    refused(cli("generate", "--ticket", tmp_path, "--seed", "99999999999999999999", code=2), "seed")


def test_a_tracking_store_that_is_not_there(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in ("foo://x", "http://127.0.0.1:9", f"file://{tmp_path}/mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        refused(cli("prune", "--model", tiny, "--measure", "none", "--out", tmp_path / "t", code=1), "tracking store")
        assert "FAIL" in cli("doctor", code=1).stdout
    assert not (tmp_path / "t").exists()


def test_an_adopted_run_that_does_not_exist(
    tiny: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    refused(cli("prune", "--model", tiny, "--measure", "none", code=1), "MLflow", "0" * 32)


def test_an_output_that_cannot_be_written(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    quick = ("--measure", "none", "--register", "none")
    refused(cli("prune", "--model", tiny, "--out", "/proc/no/such", *quick, code=2), "out=/proc/no")
    (tmp_path / "file").write_text("")
    refused(cli("prune", "--model", tiny, "--out", tmp_path / "file" / "t", *quick, code=2), "out=")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep me")
    refused(cli("prune", "--model", tiny, "--out", tmp_path / "other", *quick, code=2), "out=", "new folder")
    assert (tmp_path / "other" / "mine.txt").read_text() == "keep me"
    cli("prune", "--model", tiny, "--out", tmp_path / "t", *quick)
    refused(
        cli("prune", "--model", tiny, "--sparsity", "0.6", "--out", tmp_path / "t", *quick, code=2), "another ticket"
    )


def test_a_read_only_output(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Root may write anywhere but on a file system mounted read-only; anybody else is stopped by the folder's mode."""
    folder = tmp_path / "frozen"
    folder.mkdir(mode=0o555)
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    try:
        if os.geteuid() == 0 and not mounted:
            pytest.skip("root without the right to mount cannot meet a read-only folder")
        out = folder / "t"
        result = cli("prune", "--model", tiny, "--out", out, "--measure", "none", "--register", "none", code=2)
        refused(result, f"out={folder}", "give a folder that can be written")
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A limit on the size of a file makes the same system call fail at the same place as a full disk."""
    model = tiny_model(tmp_path / "m", hidden_size=160)
    command = [sys.executable, "-m", "lottery", "prune", "--model", str(model), "--measure", "none"]
    command += ["--register", "none", "--out", str(tmp_path / "t")]

    def limit() -> None:  # less than the ticket takes, more than the tracking store
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/x.db"}
    subprocess.run(
        [sys.executable, "-c", "from lottery.registry import store; store.connect()"], env=environment, check=True
    )
    failed = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env=environment)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    assert failed.stderr.splitlines()[-1].startswith(f"Error: out={tmp_path}/t: File too large; make room")
    assert not (tmp_path / "t").exists() and not (tmp_path / ".t.partial").exists()
    subprocess.run(command, check=True, capture_output=True, env=environment)  # there is room again
    assert (tmp_path / "t" / "ticket.json").exists()


def test_int8_where_bitsandbytes_is_not_usable(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ("--model", tiny, "--quantize", "int8", "--out", tmp_path / "t", "--register", "none")
    refused(cli("prune", *arguments, "--measure", "memory", code=2), "quantize=int8", "runtime=packed", "fp8")
    assert not (tmp_path / "t").exists()  # known before any work
    cli("prune", *arguments, "--measure", "memory", "--runtime", "packed")
    with pytest.raises(InputError, match="quantize=int8"):
        lottery.load(tmp_path / "t")
    generate = ("generate", "--ticket", tmp_path / "t", "--tokens", 3)
    refused(cli(*generate, code=2), "quantize=int8", "runtime=packed")
    assert cli(*generate, "--runtime", "packed").stdout.startswith("The meaning of life is")
    refused(cli(*generate, "--runtime", "sparse", code=2), "runtime=sparse")


def test_doctor_tries_bitsandbytes(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def int8(result: Result) -> dict[str, Any]:
        return next(check for check in json.loads(result.stdout)["checks"] if check["name"] == "int8")

    found = int8(cli("doctor", "--json"))
    assert found["fine"] and found["found"].startswith("bitsandbytes computes on c")

    def broken(*_: Any) -> None:
        raise OSError("libbitsandbytes_cpu.so: undefined symbol")

    with monkeypatch.context() as patch:
        patch.setattr(layers, "int8_linear", broken)
        found = int8(cli("doctor", "--json", code=1))
    assert not found["fine"] and "undefined symbol" in found["found"]
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)  # not there: its version is another check
    found = int8(cli("doctor", "--json"))
    assert found["fine"] and "ModuleNotFoundError" in found["found"]


def test_memory_is_estimated_first(tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "m", max_position_embeddings=10**9)
    common = ("--model", model, "--dataset", "builtin", "--register", "none")
    said = cli("prune", *common, "--window", 10**8, code=2).stderr
    assert "window=100000000: beside the weights it takes about" in said
    fits = int(said.split("give window=")[1])
    assert 1000 < fits < 10**8
    assert "fewer than one window" in cli("prune", *common, "--window", fits, code=2).stderr  # memory would do

    monkeypatch.setattr(devices, "free_bytes", lambda device: 10**5)
    refused(cli("prune", *common, code=2), "model=m: its", "weights take about", "; give measure=none")
    cli("prune", *common, "--measure", "none")


@pytest.mark.parametrize(
    ("given", "bytes_a_weight", "ways"),
    [
        (("--dtype", "float32"), 3, "dtype=source, or measure=none"),
        (("--dtype", "float32"), 1.5, "dtype=source with runtime=packed, or measure=none"),
        (("--dtype", "float32", "--runtime", "packed"), 1.5, "dtype=source, or measure=none"),
        (("--dtype", "source"), 1.5, "runtime=packed, or quantize=int8 or fp8, or measure=none"),
        (("--dtype", "source", "--storage", "mask"), 1.5, "runtime=packed, or measure=none"),
        (("--dtype", "source"), 0.5, "measure=none"),
    ],
)
def test_what_would_fit_is_offered(
    given: tuple[str, ...],
    bytes_a_weight: float,
    ways: str,
    tiny: Path,
    cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    numel = sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    monkeypatch.setattr(devices, "free_bytes", lambda device: int(bytes_a_weight * numel))
    common = ("--model", tiny, "--measure", "memory", "--register", "none", "--device", "cpu")
    result = cli("prune", *common, *given, code=2)
    refused(result, f"model=tiny: its {numel:,} weights")
    assert result.stderr.strip().endswith(f"are free; give {ways}")


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_the_job_s_limits_leave(
    version: int, tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's are those of a group above the process's own; what the file cache has of it is free."""

    root = tmp_path / "cgroup" / ("memory" if version == 1 else "")
    limit, usage, cache = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file")
    )
    none = str(2**63 - 4096) if version == 1 else "max"
    for folder, said in ((root / "job" / "step", none), (root / "job", "3000000")):
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in ((limit, said), (usage, "2950000"), ("memory.stat", f"anon 5\n{cache} 49999")):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "self").mkdir()
    groups = "4:cpu:/\n3:hugetlb,memory:/job/step\n0::/\n" if version == 1 else "0::/job/step\n"
    (tmp_path / "self" / "cgroup").write_text(groups)
    (tmp_path / "self" / "statm").write_text("1000 10 10\n")
    (tmp_path / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:   1000000 kB\n")
    monkeypatch.setattr(devices, "PROC", tmp_path)
    monkeypatch.setattr(devices, "CGROUP", tmp_path / "cgroup")
    assert devices.free_bytes("cpu") == 99999
    common = ("--model", tiny, "--measure", "memory", "--register", "none", "--device", "cpu")
    refused(cli("prune", *common, code=2), "model=tiny", "0.0 GB are free")
    (root / "job" / limit).write_text(none)
    assert devices.free_bytes("cpu") == 1000000 * 1024
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**8, 10**8))
    assert devices.free_bytes("cpu") == 10**8 - 1000 * resource.getpagesize()


def sparse_model(folder: Path, nbytes: int) -> Path:
    """A Llama of at least so many bytes of zeros, which take no space on the disk."""
    hidden, words = 4096, 1000
    of_layer: dict[str, tuple[int, ...]] = {f"self_attn.{p}_proj": (hidden, hidden) for p in "qkvo"}
    of_layer |= {f"mlp.{p}_proj": (4 * hidden, hidden) for p in ("gate", "up")} | {
        "mlp.down_proj": (hidden, 4 * hidden)
    }
    of_layer |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    depth = 1 + nbytes // sum(2 * torch.Size(shape).numel() for shape in of_layer.values())
    shapes = {"model.embed_tokens": (words, hidden), "model.norm": (hidden,), "lm_head": (words, hidden)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(depth) for name, shape in of_layer.items()}
    header: dict[str, object] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * torch.Size(shape).numel()
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    said = json.dumps(header).encode()
    said = said.ljust(-(-len(said) // 8) * 8)
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as f:
        f.write(len(said).to_bytes(8, "little") + said)
        f.truncate(8 + len(said) + at)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": 4 * hidden,
        "num_hidden_layers": depth, "num_attention_heads": 32, "vocab_size": words, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_file_larger_than_memory(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses a private mapping of one, unless nothing is reserved for it; a plan needs none at all."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    folder = sparse_model(tmp_path / "m", 5 * memory // 4)
    monkeypatch.setattr(checkpoint, "sha256_of_files", lambda paths: {})  # a minute, of zeros
    plan = lottery_json("plan", "--model", folder)
    assert plan["parameters"] > memory / 2
    name = next(n for n in plan["tensors"] if n.endswith("layers.7.mlp.down_proj.weight"))
    base = checkpoint.Base(folder, "m", tied=False)
    assert not any("data" in vars(shard) for shard in base._shards.values())
    assert not base.tensor(name).any()


def test_a_mapping_that_the_kernel_refuses_is_of_memory(
    tiny: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = mmap.mmap

    def refuse(fd: int, *arguments: Any, **how: Any) -> mmap.mmap:
        if fd >= 0:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return own(fd, *arguments, **how)

    monkeypatch.setattr(mmap, "mmap", refuse)
    arguments = ("--model", tiny, "--dataset", "builtin", "--measure", "memory", "--register", "none")
    result = cli("prune", *arguments, "--storage", "mask", code=1)
    refused(result, "out of memory; give a smaller window, runtime=packed, or measure=none")


def test_a_single_window_has_no_interval(tiny: Path, cli: Callable[..., Result]) -> None:
    common = ("--model", tiny, "--dataset", "builtin", "--limit", 1, "--measure", "perplexity", "--register", "none")
    result = cli("prune", *common, "--json")
    assert "warning: limit=1: of a single window no interval is known" in result.stderr
    assert "dataset=" not in result.stderr
    assert ", the first window of 128, " in " ".join(cli("prune", *common).stdout.split())
    found = json.loads(result.stdout)
    assert (
        "perplexity" in found["metrics"] and "perplexity_lo" not in found["metrics"] and "winner" not in found["tags"]
    )


def test_a_gpu_that_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lottery.models.devices import supports, unsupported_gpu

    of_cuda_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    assert not supports(of_cuda_13, 7, 0)  # V100
    assert supports(of_cuda_13, 8, 0) and supports(of_cuda_13, 8, 9) and supports(of_cuda_13, 9, 0)
    assert supports(of_cuda_13, 12, 1) and supports(of_cuda_13, 13, 0)  # by the instructions of an older one
    assert supports(["sm_70", "sm_75"], 7, 0) and not supports(["sm_90a"], 8, 0)
    monkeypatch.setattr(torch.version, "hip", "7.0")  # AMD's architectures have other names: gfx90a
    unsupported_gpu.cache_clear()
    assert unsupported_gpu() is None
    unsupported_gpu.cache_clear()


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112 MiB"), "out of memory; give a smaller", 1),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "out of memory; give", 1),
        (RuntimeError("CUDA error: no kernel image is available"), "the GPU failed (CUDA error: no kernel image", 1),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "the GPU failed (", 1),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "the GPU failed (", 1),
    ],
)
def test_what_fails_on_a_gpu_is_one_line(error: Exception, said: str, code: int, tmp_path: Path) -> None:
    """Also where transformers was loading a model: it is then no fault of the model's files."""
    from lottery.errors import known_failure
    from lottery.models.architecture import usable

    with pytest.raises(type(error)) as caught, usable(tmp_path, "config.json"):
        raise error
    line, exit_code = known_failure(caught.value) or ("", 0)
    assert line.startswith(said) and exit_code == code and "device=cpu" in line


def test_out_of_memory_off_a_gpu_names_no_other_device() -> None:
    from lottery.errors import known_failure

    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GB"),
    ):
        line, code = known_failure(error) or ("", 0)
        assert line == "out of memory; give a smaller window, runtime=packed, or measure=none" and code == 1


def test_what_is_not_a_folder_and_what_is_not_text(tiny: Path, cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    quick = ("--model", tiny, "--measure", "none", "--register", "none")
    refused(cli("prune", *quick, "--out", tmp_path / "file", code=2), f"out={tmp_path / 'file'}", "it is a file")
    cli("prune", *quick, "--out", tmp_path / "t")
    refused(cli("generate", "--ticket", tmp_path / "t", "--prompt", "Once \udcff", code=2), "prompt: ", "UTF-8")
    assert (
        "warning: base=/nonexistent is not looked at" in cli("verify", tmp_path / "t", "--base", "/nonexistent").stderr
    )


def test_an_export_takes_no_figures_of_another_ticket(tiny: Path, cli: Callable[..., Result], tmp_path: Path) -> None:
    cli("prune", "--model", tiny, "--dataset", "builtin", "--limit", "2", "--measure", "perplexity", "--register", "none",
        "--out", tmp_path / "t")  # fmt: skip
    there = json.loads((tmp_path / "t" / "measurements.json").read_text())
    (tmp_path / "t" / "measurements.json").write_text(json.dumps(there | {"ticket": "0" * 12}))
    refused(cli("export", tmp_path / "t", "--to", tmp_path / "e", code=2), "of the ticket 000000000000")
    assert not (tmp_path / "e").exists()


def test_a_model_s_folder_may_have_both_quotes_in_its_name(cli: Callable[..., Result], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / 'it\'s a "model"')
    how = ("--dataset", "builtin", "--limit", "2", "--measure", "perplexity", "--register", "both-quotes")
    cli("prune", "--model", model, "--target", "late", *how)
    assert "both-quotes" in cli("list").stdout

"""Everything a user may get wrong: one line that names the parameter, the value and the way out; exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from lottery.models.texts import BUILTIN_TEXT
from tests.support.hub_server import Hub, use
from tests.support.models import tiny_model
from tests.support.refused import refused
from tests.support.servers import free_port


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", "atention"), ("target=atention", "attention")),
        (("--method", "xyz"), ("method=xyz", "magnitude", "random", "wanda", "refit", "sparsegpt")),
        (("--method", "wands"), ("method=wands", "did you mean wanda")),
        (("--method", "wanda", "--sparsity", "1"), ("sparsity=1", "method=wanda", "below 1")),
        (("--method", "sparsegpt", "--sparsity", "1.0"), ("sparsity=1", "method=sparsegpt")),
        (("--method", "wanda", "--scope", "global"), ("scope=global", "method=wanda", "scope=layer")),
        (("--method", "wanda", "--scope", "row"), ("scope=row", "method=wanda", "scope=layer")),
        (("--method", "refit", "--storage", "mask"), ("storage=mask", "method=refit", "storage=packed")),
        (("--method", "sparsegpt", "--storage", "mask"), ("storage=mask", "method=sparsegpt", "method=swaps")),
        (("--nsamples", "0"), ("nsamples=0", "from 1")),
        (("--seqlen", "1"), ("seqlen=1", "from 2", "auto")),
        (("--propagate", "both"), ("propagate=both", "auto, dense, pruned")),
        (("--calibration", " "), ("calibration is empty", "self", "c4")),
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
        (("--scope", "rows"), ("scope=rows", "row")),
        (("--pattern", "2:4", "--scope", "row"), ("pattern=2:4", "scope=row", "scope=layer")),
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
    refused(
        cli("prune", "--model", tiny, "--dataset", tmp_path, code=2),
        "it is a folder; give builtin, wikitext2 or a file",
    )
    refused(cli("prune", "--model", tiny, "--dataset", tmp_path / "mytxt.txt", code=2), "there is no such file")


def test_tickets_that_are_not_there(cli: Callable[..., Result], tmp_path: Path) -> None:
    for command in ("verify", "generate", "evaluate"):
        refused(cli(command, "--ticket", "models:/nothing/1", code=2), "models:/nothing/1", "not in the registry")
        refused(cli(command, "--ticket", tmp_path, code=2), "holds no ticket.json")
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


def test_a_single_window_has_no_interval(tiny: Path, cli: Callable[..., Result]) -> None:
    common = ("--model", tiny, "--dataset", "builtin", "--limit", 1, "--measure", "perplexity", "--register", "none")
    result = cli("prune", *common, "--json")
    assert "warning: limit=1: a single window gives no interval" in result.stderr
    assert "dataset=" not in result.stderr
    assert ", the first 1 of 218 windows of 128, " in " ".join(cli("prune", *common).stdout.split())
    found = json.loads(result.stdout)
    assert "perplexity" in found["metrics"] and "perplexity_lo" not in found["metrics"]
    assert found["tags"]["winner"] == "not judged: 1 of 218 windows"


def test_what_is_not_a_folder_and_what_is_not_text(tiny: Path, cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    quick = ("--model", tiny, "--measure", "none", "--register", "none")
    refused(cli("prune", *quick, "--out", tmp_path / "file", code=2), f"out={tmp_path / 'file'}", "it is a file")
    cli("prune", *quick, "--out", tmp_path / "t")
    refused(cli("generate", "--ticket", tmp_path / "t", "--prompt", "Once \udcff", code=2), "prompt: ", "UTF-8")
    assert "warning: base=/nonexistent is ignored" in cli("verify", tmp_path / "t", "--base", "/nonexistent").stderr


def test_an_export_takes_no_figures_of_another_ticket(tiny: Path, cli: Callable[..., Result], tmp_path: Path) -> None:
    cli("prune", "--model", tiny, "--dataset", "builtin", "--limit", "2", "--measure", "perplexity", "--register", "none",
        "--out", tmp_path / "t")  # fmt: skip
    there = json.loads((tmp_path / "t" / "measurements.json").read_text())
    (tmp_path / "t" / "measurements.json").write_text(json.dumps(there | {"ticket": "0" * 12}))
    refused(cli("export", tmp_path / "t", "--to", tmp_path / "e", code=2), "to the ticket 000000000000")
    assert not (tmp_path / "e").exists()


def test_a_model_s_folder_may_have_both_quotes_in_its_name(cli: Callable[..., Result], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / 'it\'s a "model"')
    how = ("--dataset", "builtin", "--limit", "2", "--measure", "perplexity", "--register", "both-quotes")
    cli("prune", "--model", model, "--target", "late", *how)
    assert "both-quotes" in cli("list").stdout


def test_hints_for_what_a_newcomer_types(tiny: Path, cli: Callable[..., Result], tmp_path: Path) -> None:
    refused(cli("plan", "--model", tiny / "model.safetensors", code=2), "it is a file, and not a model's folder")
    refused(cli("list", "--filter", "target = late", code=2), "filter=target = late", "write params.target = 'late'")
    cli("prune", "--model", tiny, "--measure", "none", "--register", "hints", "--sparsity", "0.23")
    refused(
        cli("generate", "models:/hints@winner", code=2), "it has the versions 1; none of them won on the whole default"
    )
    refused(cli("generate", "hints/1", code=1), "a registered ticket is models:/hints/1")


CALIBRATED = ("--method", "wanda", "--measure", "none", "--register", "none")


def test_calibration_texts_that_cannot_serve(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    def says(text: str, *words: str, more: tuple[object, ...] = ()) -> None:
        how = ("--model", tiny, "--calibration", tmp_path / text, "--out", tmp_path / "t", *CALIBRATED, *more)
        refused(cli("prune", *how, code=2), *words)
        assert not (tmp_path / "t").exists()

    (tmp_path / "short.txt").write_text("Too short.")
    says("short.txt", "calibration=", "tokens are fewer than one sample of 128", "calibration=self")
    says("short.txt", "seqlen=129: this model takes at most 128 tokens; give a smaller seqlen", more=("--seqlen", 129))
    says("none.txt", "calibration=", "there is no such file; give self, c4, wikitext2-train, builtin or a file")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    says("latin.txt", "calibration=", "latin.txt", "UTF-8")
    (tmp_path / "rows.jsonl").write_text('{"txt": "x"}\n')
    says("rows.jsonl", "calibration=", "no column 'text'")


def test_c4_without_a_hub(tiny: Path, tmp_path: Path, cli: Callable[..., Result], server: Hub,
                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """`auto` means C4 for every model but the embedded one, also where C4 cannot be had."""
    use(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path / "home")
    ways = ("calibration=c4", "give calibration=self, or a text as calibration=FILE")
    refused(cli("prune", "--model", tiny, *CALIBRATED, code=1), "cannot be reached", *ways)
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    refused(cli("prune", "--model", tiny, *CALIBRATED, code=2), "offline", "unset HF_HUB_OFFLINE", *ways)
    assert server.asked == []


def test_calibration_that_is_ignored(tiny: Path, cli: Callable[..., Result]) -> None:
    how = ("--model", tiny, "--measure", "none", "--register", "none", "--nsamples", 5)
    said = cli("prune", "--calibration", "no/such.txt", *how).stderr
    assert "warning: calibration=no/such.txt, nsamples=5: ignored, because method=magnitude looks at no data\n" in said


def test_calibration_with_the_evaluation_text(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    text = BUILTIN_TEXT.read_text(encoding="utf-8")
    (tmp_path / "half.txt").write_text(text[: len(text) // 2])
    how = ("--model", tiny, "--dataset", "builtin", "--limit", 2, "--measure", "perplexity", *CALIBRATED[:2], *CALIBRATED[4:])  # fmt: skip
    shown = cli("prune", "--calibration", tmp_path / "half.txt", "--nsamples", 4, "--json", *how)
    warnings = [line for line in shown.stderr.splitlines() if "a run of 12 words" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: dataset=builtin: it shares")
    assert json.loads(shown.stdout)["tags"]["overlap"] == "yes"
    other = cli("prune", "--calibration", "self", "--nsamples", 4, "--json", *how)
    assert "a run of 12 words" not in other.stderr and "overlap" not in json.loads(other.stdout)["tags"]

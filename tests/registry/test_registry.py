"""Runs, logged models, registered versions: what MLflow holds, and what comes out of it again."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import Result

import lottery
from lottery.files.locks import run_lock
from lottery.registry import store
from lottery.ticket.stored import StoredTicket
from tests.support.forks import Forks
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def registered(tiny: Path, cli: Callable[..., Result]) -> dict[str, Any]:
    """One whole run, everything measured, on the tiny model."""
    arguments = ("--model", tiny, "--target", "late", "--dataset", "builtin", "--limit", "40", "--register", "whole")
    result = cli("prune", *arguments, "--json")
    assert len(result.stdout.splitlines()) == 1
    return json.loads(result.stdout)


def test_a_run_records_everything(registered: dict[str, Any], tiny: Path) -> None:
    client = mlflow.MlflowClient()
    run = client.get_run(registered["run_id"])
    metrics, tags = run.data.metrics, run.data.tags
    for name in [
        "perplexity",
        "perplexity_lo",
        "perplexity_hi",
        "perplexity_ratio",
        "perplexity_ratio_lo",
        "perplexity_ratio_hi",
        "bits_per_byte",
        "sparsity_target",
        "sparsity_prunable",
        "sparsity_model",
        "disk_bytes",
        "disk_ratio",
        "weights_bytes",
        "weights_ratio",
        "peak_bytes",
        "generate_tok_s",
        "prefill_tok_s",
        "decode_tok_s",
        "decode_tok_s_lo",
        "decode_tok_s_hi",
        "decode_floor_tok_s",
        "ttft_ms",
        "repetition",
        "distinct_2",
        "dense_nll",
        "prune_s",
        "load_s",
        "evaluate_s",
    ]:
        assert math.isfinite(metrics[name]), name
    assert metrics["sparsity_target"] == 0.5
    assert metrics["perplexity_lo"] < metrics["perplexity"] < metrics["perplexity_hi"]
    assert {
        "kind": "ticket",
        "base": "tiny",
        "limited": "40",
        "winner": "not judged: 40 of 218 windows",
        "device": "cpu",
    }.items() <= tags.items()
    assert run.info.run_name == "tiny late 50%" and run.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {
        "layers.json", "measurements.json", "nll_per_window.npy", "samples.json",
    }  # fmt: skip
    assert len(run.data.params) == 24 and run.data.params["model"] == str(tiny)
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "builtin-w128-first40"

    version = client.get_model_version("whole", "1")
    model = client.get_logged_model(registered_model_id(version))
    assert {"ticket", "protocol", "base", "winner", "kind"} <= version.tags.keys() & model.tags.keys()
    tied = {m.key: m for m in model.metrics}
    assert tied["perplexity"].value == metrics["perplexity"]
    assert tied["perplexity"].dataset_name == "builtin-w128-first40"
    files = [p for p in Path(model.artifact_location.removeprefix("file://")).rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".pkl", ".bin", ".pt", ".pickle")]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".yaml", ".txt", ".py", ""}
    pinned = next(p for p in files if p.name == "requirements.txt").read_text()
    assert f"torch=={torch.__version__.split('+')[0]}\n" in pinned and all("==" in line for line in pinned.splitlines())


def registered_model_id(version: Any) -> str:
    return version.source.removeprefix("models:/")


def test_the_dense_base_is_measured_once_a_protocol(
    registered: dict[str, Any], tiny: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    client = mlflow.MlflowClient()
    query = f"tags.kind = 'dense' and tags.protocol = '{registered['tags']['protocol']}' and tags.base = 'tiny'"
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert len(client.search_runs(experiments, query)) == 1
    again = lottery_json(
        "prune", "--model", tiny, "--target", "early", "--dataset", "builtin", "--limit", "40", "--register", "whole",
        "--measure", "perplexity",
    )  # fmt: skip
    assert len(client.search_runs(experiments, query)) == 1
    assert again["metrics"]["perplexity_ratio"] != registered["metrics"]["perplexity_ratio"]
    assert again["model_uri"] == "models:/whole/2"


def test_a_registered_ticket_gets_no_second_version(
    registered: dict[str, Any], tiny: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    again = lottery_json(
        "prune", "--model", tiny, "--target", "all@late", "--sparsity", "0.50", "--dataset", "builtin", "--limit", "40",
        "--register", "whole", "--measure", "memory",
    )  # fmt: skip
    assert (again["ticket"], again["model_uri"]) == (registered["ticket"], registered["model_uri"])
    assert again["run_id"] != registered["run_id"]


def test_a_full_measuring_renews_the_tags_of_the_version(
    tiny: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    arguments = ("--model", tiny, "--target", "k_proj", "--dataset", "builtin", "--register", "tags")
    first = lottery_json("prune", *arguments, "--measure", "none")
    client = mlflow.MlflowClient()
    assert "winner" not in client.get_model_version("tags", "1").tags
    lottery_json("prune", *arguments, "--measure", "perplexity", "--limit", "3")
    assert client.get_model_version("tags", "1").tags["winner"] == "not judged: 3 of 218 windows"
    full = lottery_json("prune", *arguments, "--measure", "perplexity")
    assert first["model_uri"] == full["model_uri"] == "models:/tags/1"
    version = client.get_model_version("tags", "1")
    model = client.get_logged_model(registered_model_id(version))
    assert version.tags["winner"] == model.tags["winner"] == full["tags"]["winner"]
    assert version.tags["protocol"] == full["tags"]["protocol"] and "limited" not in version.tags
    lottery_json("prune", *arguments, "--measure", "perplexity", "--limit", "2")
    assert client.get_model_version("tags", "1").tags == version.tags


def test_a_dense_row_has_no_speed_of_another_hour(
    registered: dict[str, Any], tiny: Path, cli: Callable[..., Result]
) -> None:
    arguments = ("--model", tiny, "--target", "late", "--dataset", "builtin", "--limit", "40", "--register", "whole")
    printed = cli("prune", *arguments, "--measure", "perplexity").stdout
    assert "dense" in printed and "tok/s" not in printed and "ratio to dense" in printed


def test_runs_of_one_ticket_at_once_register_it_once(tiny: Path, forks: Forks) -> None:
    command = ("prune", "--model", tiny, "--sparsity", "0.4", "--register", "race", "--measure", "none", "--json")
    ends = forks.run(command, command, command)
    assert [end["code"] for end in ends] == [0, 0, 0], ends
    assert {json.loads(end["out"])["model_uri"] for end in ends} == {"models:/race/1"}
    assert len(mlflow.MlflowClient().search_model_versions("name = 'race'")) == 1


def test_a_ticket_kept_at_home_stays_there(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    arguments = ("--model", tiny, "--target", "v_proj", "--measure", "none")
    kept = lottery_json("prune", *arguments, "--register", "none")
    assert kept["model_uri"] is None and "tickets" in kept["path"]
    assert lottery_json("prune", *arguments, "--register", "kept")["path"] is None
    StoredTicket(Path(kept["path"])).verify()


def test_a_damaged_ticket_is_not_registered(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    out = tmp_path / "t"
    arguments = ("--model", tiny, "--measure", "none", "--out", out)
    cli("prune", *arguments, "--register", "none")
    shard = StoredTicket(out).shards[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    assert "damaged" in cli("prune", *arguments, "--register", "damaged", code=2).stderr
    assert not mlflow.MlflowClient().search_model_versions("name = 'damaged'")


def test_a_version_whose_files_are_gone_is_not_reused(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    import shutil

    arguments = ("--model", tiny, "--target", "o_proj", "--measure", "none", "--register", "gone")
    lottery_json("prune", *arguments)
    client = mlflow.MlflowClient()
    model = client.get_logged_model(registered_model_id(client.get_model_version("gone", "1")))
    shutil.rmtree(Path(model.artifact_location.removeprefix("file://")) / "data")
    assert lottery_json("prune", *arguments)["model_uri"] == "models:/gone/2"


def test_inside_a_run_of_the_caller_s_own(tiny: Path) -> None:
    with mlflow.start_run() as outer:
        made = lottery.prune(model=tiny, target="q_proj", measure="none", register="none")
    assert mlflow.MlflowClient().get_run(made.run_id).data.tags["mlflow.parentRunId"] == outer.info.run_id


def test_what_a_killed_process_left_is_closed(tiny: Path, cli: Callable[..., Result]) -> None:
    """A run whose process lives is left alone; one whose process is gone is closed; one that a person deleted stops nobody."""
    client, arguments = mlflow.MlflowClient(), ("prune", "--model", tiny, "--target", "q_proj", "--measure", "none")
    store.connect()
    ids = ("00000000000000aa", "00000000000000bb")
    living, deleted = (client.create_run("0", tags={"measurement": id}).info.run_id for id in ids)
    with run_lock(ids[0], {"store": store.store_digest(), "run": None}) as held:
        cli(*arguments)
        assert client.get_run(living).info.status == "RUNNING" and held.exists()
    with run_lock(ids[1], {"store": store.store_digest(), "run": deleted}) as left:
        client.delete_run(deleted)
    cli(*arguments)
    run = client.get_run(living)
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "killed")
    assert not held.exists() and not left.exists()


def test_a_logged_model_deleted_under_its_version(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    arguments = ("prune", "--model", tiny, "--target", "up_proj", "--measure", "none", "--register", "under")
    lottery_json(*arguments)
    client = mlflow.MlflowClient()
    client.delete_logged_model(registered_model_id(client.get_model_version("under", "1")))
    assert lottery_json(*arguments)["model_uri"] == "models:/under/2"


def test_a_version_that_is_not_there_is_named(registered: dict[str, Any], cli: Callable[..., Result]) -> None:
    said = cli("verify", "--ticket", "models:/whole/99", code=2).stderr
    assert "models:/whole/99" in said and "it has the versions 1" in said


def test_loaded_by_uri_it_is_the_ticket_to_the_bit(registered: dict[str, Any], cli: Callable[..., Result]) -> None:
    model, tokenizer = lottery.load(registered["model_uri"], dtype="source")
    model_id = registered_model_id(mlflow.MlflowClient().get_model_version("whole", "1"))
    same, _ = lottery.load(f"models:/{model_id}", dtype="source")
    state = same.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert sum(int((p == 0).sum()) for n, p in model.named_parameters() if ".2.mlp.up" in n) == 48 * 100 // 2
    assert "every hash is right" in cli("verify", "--ticket", registered["model_uri"]).stdout
    text = cli("generate", "--ticket", registered["model_uri"], "--prompt", "Once upon a time", "--tokens", "5").stdout
    assert text.startswith("Once upon a time") and tokenizer is not None
    warm = [
        json.loads(
            cli("generate", "--ticket", registered["model_uri"], "--temperature", "1", "--seed", s, "--json").stdout
        )
        for s in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]


def test_evaluating_again_adds_to_the_logged_model(
    registered: dict[str, Any], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    again = lottery_json(
        "evaluate", "--ticket", registered["model_uri"], "--window", "64", "--limit", "9", "--dataset", "builtin",
        "--measure", "perplexity",
    )  # fmt: skip
    assert again["ticket"] == registered["ticket"] and "perplexity_ratio" in again["metrics"]
    client = mlflow.MlflowClient()
    model = client.get_logged_model(registered_model_id(client.get_model_version("whole", "1")))
    on = {m.dataset_name: m.value for m in model.metrics if m.key == "perplexity"}
    assert on == {
        "builtin-w128-first40": registered["metrics"]["perplexity"],
        "builtin-w64-first9": again["metrics"]["perplexity"],
    }


def test_pyfunc_in_a_process_without_lottery(registered: dict[str, Any], cli: Callable[..., Result]) -> None:
    """-P keeps the repository off the path; the finder that an editable install adds is removed, and every folder of one."""
    script = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import os; sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'lottery'))]\n"
        "import importlib.util, json, mlflow\n"
        "assert importlib.util.find_spec('lottery') is None\n"
        f"m = mlflow.pyfunc.load_model({registered['model_uri']!r})\n"
        "print(json.dumps([m.predict(['The meaning of life is']), m.predict(['A', 'B'], params={'max_new_tokens': 3})]))\n"
        "import lottery; assert 'artifacts' in lottery.__file__, lottery.__file__\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout.splitlines()[-1])
    assert one == [cli("generate", "--ticket", registered["model_uri"]).stdout.removesuffix("\n")]
    assert len(two) == 2 and two[0].startswith("A")


def test_what_a_served_model_refuses(registered: dict[str, Any]) -> None:
    from lottery.registry.serve import _load_pyfunc

    model_id = registered_model_id(mlflow.MlflowClient().get_model_version("whole", "1"))
    location = mlflow.MlflowClient().get_logged_model(model_id).artifact_location.removeprefix("file://")
    served = _load_pyfunc(f"{location}/data/ticket")
    for prompts, params, says in (
        ([None], {}, "string"),
        (["x"], {"max_new_tokens": 0}, "max_new_tokens"),
        (["x"], {"temperature": -1.0}, "temperature"),
        (["x"], {"seed": -1}, "seed"),
        (["word " * 1000], {}, "exceed the model's 128"),
    ):
        with pytest.raises(mlflow.exceptions.MlflowException, match=says) as caught:
            served.predict(prompts, params)
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert served.predict([""], {"max_new_tokens": 2})


def test_mlflow_run_adopts_its_run(tmp_path: Path, tiny: Path) -> None:
    """The real `mlflow run`, with a value typed otherwise than we would write it."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["mlflow", "run", str(ROOT), "--env-manager", "local", "-P", f"model={tiny}", "-P", "target=late"]
    command += ["-P", "dataset=builtin", "-P", "measure=perplexity", "-P", "register=adopted", "-P", "sparsity=0.50"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient()
    version = client.get_model_version("adopted", "1")
    run = client.get_run(version.run_id)
    assert run.data.params["sparsity"] == "0.50" and run.info.status == "FINISHED" and "perplexity" in run.data.metrics
    assert run.info.run_name == "tiny late 50%"


def test_an_adopted_run_that_fails_says_why(
    tiny: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `mlflow run` begins it: with the parameters as they were typed."""
    client = mlflow.MlflowClient()
    begun = client.create_run("0").info.run_id
    client.log_param(begun, "sparsity", "1.50")
    monkeypatch.setenv("MLFLOW_RUN_ID", begun)
    said = cli("prune", "--model", tiny, "--sparsity", "1.50", "--register", "never-adopted", code=2).stderr
    assert "Error: sparsity=1.50: give a number from 0 to 1" in said
    run = client.get_run(begun)
    assert run.info.status == "FAILED" and run.data.tags["reason"].startswith("sparsity=1.50")
    assert not client.search_model_versions("name = 'never-adopted'")

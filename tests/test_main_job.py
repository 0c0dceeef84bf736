"""The main job on real models: pruned like torch, measured as it lies on disk, registered, reloaded, used."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from conftest import ROOT, STORIES, WIKITEXT, needs_data, tiny_model
from torch.nn.utils import prune as torch_prune

import lottery
from lottery import measure
from lottery.ticket import Stored

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
    text = (ROOT / "lottery" / "assets" / "evaluation.txt").read_text()
    made = lottery_json(
        "prune", "--model", STORIES, "--target", target, "--sparsity", "0.25", "--dataset", "builtin", "--dtype",
        "float32", "--measure", "perplexity", "--out", tmp_path / "t",
    )  # fmt: skip
    wanted = {f"model.layers.{i}." for i in layers}
    targeted = lambda name: name.endswith(PROJECTIONS) and any(name.startswith(w) for w in wanted)  # noqa: E731
    twin = pruned_by_torch(STORIES, 0.25, targeted)
    stored = Stored(tmp_path / "t")
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
def test_gpt2_counts_the_tokens_of_wikitext2() -> None:
    from lottery.models import read_tokenizer
    from lottery.text import windows

    folder = STORIES.parent / "tokenizers" / "gpt2"
    tokenizer = transformers.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    ids_NT, protocol = windows(str(WIKITEXT), tokenizer, 50257, 1024, "none", "float32", "dense", "cpu")
    assert protocol.tokens == 287_644 and ids_NT.shape == (280, 1024) and protocol.bos == "none"
    assert read_tokenizer(folder.parent) is None


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


def test_the_cross_entropy_in_place_equals_torch_s() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits_TW = torch.randn(50, 300, generator=torch.manual_seed(1)).mul(20).to(dtype)
        target_T, before = torch.arange(50) * 6, logits_TW.clone()
        expected = torch.nn.functional.cross_entropy(logits_TW.float(), target_T, reduction="none")
        torch.testing.assert_close(measure.token_nll(logits_TW, target_T), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits_TW, before)
    assert not measure.token_nll(torch.tensor([[1.0, math.inf]]), torch.tensor([0])).isfinite().any()


def test_mistral_class_models(tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    model = tiny_model(tmp_path / "m", "Mistral", torch.float16)
    made = lottery_json(
        "prune", "--model", model, "--target", "attention+mlp@late", "--dataset", "builtin", "--limit", "4",
        "--dtype", "float32", "--measure", "perplexity,memory", "--register", "none", "--out", tmp_path / "t",
    )  # fmt: skip
    loaded, _ = lottery.load(tmp_path / "t", dtype="source")
    assert type(loaded).__name__ == "MistralForCausalLM" and loaded.dtype == torch.float16
    assert made["tags"]["limited"] == "4" and made["tags"]["winner"] == "no"
    assert made["metrics"]["weights_ratio"] == pytest.approx(2, rel=1e-3)  # float32 in memory, float16 in the file


@pytest.mark.parametrize("n", [2, 6, 40])
def test_the_interval_equals_a_slow_twin(n: int) -> None:
    from scipy import stats

    values_N = np.random.default_rng(n).gamma(2, size=n)
    low, high = measure.interval(values_N)  # type: ignore[misc]
    rng = np.random.default_rng(1)
    means = sorted(np.mean(rng.choice(values_N, n)) for _ in range(10_000))
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    spread = values_N.std() / math.sqrt(n)
    assert low == pytest.approx(means[int(tail * 10_000)], abs=0.1 * spread)
    assert high == pytest.approx(means[min(9_999, int((1 - tail) * 10_000))], abs=0.1 * spread)
    assert measure.interval(values_N) == (low, high) and measure.interval(values_N[:1]) is None


def test_the_interval_of_eleven_windows_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = measure.interval(rng.normal(size=11), seed=trial)  # type: ignore[misc]
        hits += low <= 0 <= high
    assert 0.91 <= hits / 300 <= 0.98


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
    assert {"kind": "ticket", "base": "tiny", "limited": "40", "winner": "no", "device": "cpu"}.items() <= tags.items()
    assert run.info.run_name == "late 50%" and run.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {
        "layers.json", "measurements.json", "nll_per_window.npy", "samples.json",
    }  # fmt: skip
    assert len(run.data.params) == 19 and run.data.params["model"] == str(tiny)
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
    assert "winner" not in client.get_model_version("tags", "1").tags
    full = lottery_json("prune", *arguments, "--measure", "perplexity")
    assert first["model_uri"] == full["model_uri"] == "models:/tags/1"
    version = client.get_model_version("tags", "1")
    model = client.get_logged_model(registered_model_id(version))
    assert version.tags["winner"] == model.tags["winner"] == full["tags"]["winner"]
    assert version.tags["protocol"] == full["tags"]["protocol"]


def test_a_dense_row_has_no_speed_of_another_hour(
    registered: dict[str, Any], tiny: Path, cli: Callable[..., Result]
) -> None:
    arguments = ("--model", tiny, "--target", "late", "--dataset", "builtin", "--limit", "40", "--register", "whole")
    printed = cli("prune", *arguments, "--measure", "perplexity").stdout
    assert "dense" in printed and "tok/s" not in printed and "ratio to dense" in printed


def test_runs_of_one_ticket_at_once_register_it_once(tiny: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lottery",
        "prune",
        "--model",
        str(tiny),
        "--sparsity",
        "0.4",
        "--register",
        "race",
    ]
    command += ["--measure", "none", "--json"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(p.communicate(), p.returncode) for p in started]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert {json.loads(out)["model_uri"] for (out, _), _ in ends} == {"models:/race/1"}
    assert len(mlflow.MlflowClient().search_model_versions("name = 'race'")) == 1


def test_a_ticket_kept_at_home_stays_there(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    arguments = ("--model", tiny, "--target", "v_proj", "--measure", "none")
    kept = lottery_json("prune", *arguments, "--register", "none")
    assert kept["model_uri"] is None and "tickets" in kept["path"]
    assert lottery_json("prune", *arguments, "--register", "kept")["path"] is None
    Stored(Path(kept["path"])).verify()


def test_a_damaged_ticket_is_not_registered(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    out = tmp_path / "t"
    arguments = ("--model", tiny, "--measure", "none", "--out", out)
    cli("prune", *arguments, "--register", "none")
    shard = Stored(out).shards[0]
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


def test_a_version_that_is_not_there_is_named(registered: dict[str, Any], cli: Callable[..., Result]) -> None:
    said = cli("verify", "--ticket", "models:/whole/99", code=2).stderr
    assert "models:/whole/99" in said and "it has the versions 1" in said


def test_rows_of_json_lines_split_at_newlines_alone(tmp_path: Path) -> None:
    from lottery.text import read_text

    texts = ["one\u2028two\u0085", "three"]
    rows = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    (tmp_path / "x.jsonl").write_bytes(rows.encode())
    assert read_text(str(tmp_path / "x.jsonl")) == ("x.jsonl", "\n\n".join(texts))


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
    """-P keeps the repository off the path; the finder that an editable install adds is removed too."""
    script = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\n"
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
    from lottery.serve import _load_pyfunc

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


def test_an_overflow_is_an_outcome_not_a_number(tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model(tmp_path / "m")
    state = load_file(model / "model.safetensors")
    state["lm_head.weight"] *= 1e37
    state["model.norm.weight"] *= 1e5
    save_file(state, model / "model.safetensors", {"format": "pt"})
    made = lottery_json(
        "prune", "--model", model, "--target", "late", "--dataset", "builtin", "--limit", "2",
        "--measure", "perplexity", "--register", "over",
    )  # fmt: skip
    assert made["tags"]["outcome"] == "overflow" and "winner" not in made["tags"]
    assert "perplexity" not in made["metrics"] and all(math.isfinite(v) for v in made["metrics"].values())


def test_plan_says_what_prune_does(tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    arguments = ("--model", tiny, "--target", "mlp+embeddings", "--sparsity", "0.9")
    planned = lottery_json("plan", *arguments)
    made = lottery_json("prune", *arguments, "--measure", "none", "--register", "none", "--out", tmp_path / "t")
    assert planned["ticket"] == made["ticket"]
    for name in ("sparsity_target", "sparsity_prunable", "sparsity_model"):
        assert planned[name] == made["metrics"][name]
    headers = 1.2 * (tiny / "model.safetensors").stat().st_size - planned["disk_bytes_before"]
    assert (
        planned["disk_bytes_after"]
        <= made["metrics"]["disk_bytes"]
        <= planned["disk_bytes_after"] + max(headers, 20_000)
    )


def test_plan_and_doctor_for_people(tiny: Path, cli: Callable[..., Result]) -> None:
    said = cli("plan", "--model", tiny, "--target", "q_proj@1").stdout
    assert "model.layers.1.self_attn.q_proj.weight" in said and "layers 1;" in said
    assert "tracking store" in cli("doctor").stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from lottery.cli import main\n"
        "for name in ([], *([c] for c in main.commands)): assert CliRunner().invoke(main, [*name, '--help']).exit_code == 0\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'mlflow', 'transformers', 'numba', 'numpy', 'rich'}))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_mlflow_run_adopts_its_run(tmp_path: Path, tiny: Path) -> None:
    """The real `mlflow run`, with a value typed otherwise than we would write it; then one that fails, with its reason."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["mlflow", "run", str(ROOT), "--env-manager", "local", "-P", f"model={tiny}", "-P", "target=late"]
    command += ["-P", "dataset=builtin", "-P", "measure=perplexity", "-P", "register=adopted"]
    done = subprocess.run([*command, "-P", "sparsity=0.50"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient()
    version = client.get_model_version("adopted", "1")
    run = client.get_run(version.run_id)
    assert run.data.params["sparsity"] == "0.50" and run.info.status == "FINISHED" and "perplexity" in run.data.metrics
    assert run.info.run_name == "late 50%"

    done = subprocess.run([*command, "-P", "sparsity=1.50"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Error: sparsity=1.50: give a number from 0 to 1" in done.stderr
    failed = client.search_runs(["0"], "tags.reason LIKE 'sparsity=1.50%'")
    assert [r.info.status for r in failed] == ["FAILED"]
    assert len(client.search_model_versions("name = 'adopted'")) == 1

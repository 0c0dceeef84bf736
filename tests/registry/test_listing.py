"""What a person reads of tickets: `lottery list`, the descriptions of runs, versions and models, the base's licence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from lottery.measuring.numbers import format_perplexity, format_ratio
from lottery.models.devices import pick_compute_dtype
from lottery.models.hub import read_licence
from lottery.registry import cards
from tests.support.models import tiny_model

NAME = "listed"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lottery_json: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    model = tiny_model(tmp_path_factory.mktemp("models") / "with-card")
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-licence\n---\n# A | model\n")
    few = ("--model", model, "--dataset", "builtin", "--limit", "5", "--register", NAME)
    how = [
        ("--target", "late", "--sparsity", "0.3"),
        ("--target", "all", "--sparsity", "0.9"),
        ("--target", "mlp", "--sparsity", "0.5", "--quantize", "int8", "--measure", "none"),
    ]
    return [lottery_json("prune", "--measure", "perplexity,samples", *few, *words) for words in how]


def listed(lottery_json: Callable[..., dict[str, Any]], *words: str) -> list[str]:
    return [row["uri"] for row in lottery_json("list", *words)["tickets"] if f"/{NAME}/" in row["uri"]]


def read_groups(printed: str) -> dict[str, list[dict[str, str]]]:
    """Heading -> rows, of what `lottery list` prints."""
    found = {}
    for part in printed.strip().split("\n\n"):
        heading, titles, _, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()
        )
        found[heading[0]] = [dict(zip(titles, line, strict=True)) for line in lines]
    return found


def test_one_line_each(made: list[dict[str, Any]], cli: Callable[..., Result]) -> None:
    groups = read_groups(cli("list", "--name", NAME).stdout)
    protocol = made[0]["tags"]["protocol"]
    dtype = pick_compute_dtype("auto", "BF16", "cpu")  # float32 on a processor that does not compute bfloat16
    assert list(groups) == [
        f"with-card, protocol {protocol}: builtin: 28,000 tokens, the first 5 of 218 windows of 128, BOS none, {dtype} on cpu",
        "with-card, not measured",
    ]
    rows = [row for rows in groups.values() for row in rows]
    assert [(r["ticket"], r["target"], r["sparsity"], r["quantize"]) for r in rows] == [
        ("listed/1", "late", "30%", "none"),
        ("listed/2", "all", "90%", "none"),
        ("listed/3", "mlp", "50%", "int8"),
    ]
    metrics = made[0]["metrics"]
    assert rows[0]["perplexity [95%]"].startswith(f"{format_perplexity(metrics['perplexity'])} [")
    assert rows[0]["ratio to dense [95%]"].startswith(f"{format_ratio(metrics['perplexity_ratio'])} [")
    assert rows[0]["winner"] == rows[1]["winner"] == "not judged: 5 of 218 windows"
    assert float(rows[2]["file MB"]) == pytest.approx(made[2]["metrics"]["disk_bytes"] / 1e6, abs=0.005)
    assert rows[2]["perplexity [95%]"] == rows[2]["winner"] == ""


def test_bases_and_protocols_stand_apart_and_each_is_sorted(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    for base, layers in (("one-base", 2), ("another-base", 3)):
        model = tiny_model(tmp_path / base, num_hidden_layers=layers)
        common = ("--model", model, "--dataset", "builtin", "--measure", "perplexity", "--register", "apart-lists")
        for how in (("0.5", "64"), ("0.2", "64"), ("0.4", "128")):
            lottery_json("prune", *common, "--limit", "4", "--sparsity", how[0], "--window", how[1])
    groups = read_groups(cli("list", "--name", "apart-lists", "--order", "ratio").stdout)
    about = [(heading.split(",")[0], heading.split("windows of ")[1].split(",")[0]) for heading in groups]
    assert about == [("another-base", "128"), ("another-base", "64"), ("one-base", "128"), ("one-base", "64")]
    assert [len(rows) for rows in groups.values()] == [1, 2, 1, 2]
    for rows in groups.values():
        ratios = [float(row["ratio to dense [95%]"].split()[0]) for row in rows]
        assert ratios == sorted(ratios)
    whole = [row for row in lottery_json("list", "--order", "ratio")["tickets"] if "/apart-lists/" in row["uri"]]
    assert [r["metrics"]["perplexity_ratio"] for r in whole] == sorted(r["metrics"]["perplexity_ratio"] for r in whole)


def test_filtered_and_ordered(made: list[dict[str, Any]], lottery_json: Callable[..., dict[str, Any]]) -> None:
    assert listed(lottery_json, "--filter", "params.target = 'late'") == ["models:/listed/1"]
    between = sum(m["metrics"]["perplexity"] for m in made[:2]) / 2
    below = [m["model_uri"] for m in made[:2] if m["metrics"]["perplexity"] < between]
    assert listed(lottery_json, "--filter", f"metrics.perplexity < {between}") == below
    assert listed(lottery_json, "--filter", "tags.winner = 'nobody'") == []
    assert listed(lottery_json, "--order", "sparsity") == ["models:/listed/1", "models:/listed/3", "models:/listed/2"]
    assert listed(lottery_json, "--order", "perplexity")[-1] == "models:/listed/3"  # the one without stands last


def test_what_cannot_be_listed(made: list[dict[str, Any]], cli: Callable[..., Result], tmp_path: Path) -> None:
    assert "filter=nonsense" in cli("list", "--filter", "nonsense", code=2).stderr
    said = cli("list", "--name", "nobody", code=2).stderr
    assert "name=nobody" in said and NAME in said
    assert "no registered ticket matches" in cli("list", "--name", NAME, "--filter", "params.target = 'x'").stdout


def test_measured_again_it_keeps_what_it_was_registered_with(
    made: list[dict[str, Any]], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    uri = made[0]["model_uri"]
    lottery_json("evaluate", uri, "--dataset", "builtin", "--window", "64", "--limit", "4", "--measure", "perplexity")
    row = next(r for r in lottery_json("list", "--name", NAME)["tickets"] if r["uri"] == uri)
    assert row["metrics"]["perplexity"] == made[0]["metrics"]["perplexity"]
    assert row["dataset"] == "builtin-w128-first5"


@pytest.mark.parametrize("again", ["prune", "evaluate"])
def test_registered_without_figures_and_measured_under_a_limit(
    again: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    """The verdict and the protocol are those of the run whose figures the row has."""
    model, name = tiny_model(tmp_path / f"later-{again}"), f"later-{again}"
    how = ("--model", model, "--register", name)
    uri = lottery_json("prune", *how, "--measure", "none")["model_uri"]
    few = ("--dataset", "builtin", "--limit", "5", "--measure", "perplexity")
    found = lottery_json(again, *(how if again == "prune" else (uri,)), *few)
    (row,) = lottery_json("list", "--name", name)["tickets"]
    assert row["winner"] == found["tags"]["winner"] == "not judged: 5 of 218 windows"
    assert (row["protocol"], row["arithmetic"]) == (found["tags"]["protocol"], found["tags"]["arithmetic"])
    assert row["run_id"] == found["run_id"]
    assert f"{name}, protocol {row['protocol']}: builtin: 28,000 tokens" in cli("list", "--name", name).stdout
    if again == "prune":
        version = mlflow.MlflowClient().get_model_version(name, "1")
        assert version.tags["winner"] == row["winner"] and version.tags["judged_by"] == found["run_id"]
        assert format_ratio(found["metrics"]["perplexity_ratio"]) in version.description


def test_runs_versions_and_models_describe_themselves(made: list[dict[str, Any]]) -> None:
    client, metrics = mlflow.MlflowClient(), made[0]["metrics"]
    note = client.get_run(made[0]["run_id"]).data.tags["mlflow.note.content"]
    table = [line for line in note.splitlines() if line.startswith("| ")]
    assert table[1].startswith("| dense ") and table[2].startswith("| late 30%")
    assert f"{format_perplexity(metrics['perplexity'])} [" in table[2]
    assert f"protocol {made[0]['tags']['protocol']}" in note and "The meaning of life is" in note
    version = client.get_model_version(NAME, "1")
    card = version.description
    for says in (
        "late 30% of with-card", "attention: 8 matrices of the layers 1-2", "mlp: 6 matrices", "tiny-licence",
        f'lottery.load("{version.source}")', "### Limits", f"{format_perplexity(metrics['perplexity'])}", "method magnitude",
    ):  # fmt: skip
        assert says in card, says
    assert len(card) <= 5000 and "quantized to int8" in client.get_model_version(NAME, "3").description
    assert "with-card" in client.get_registered_model(NAME).description
    dense = [r for r in client.search_runs(["0"], "tags.kind = 'dense'") if r.data.tags["base"] == "with-card"]
    assert {r.info.run_name for r in dense} >= {"dense with-card w128"}
    assert all(
        r.data.metrics["sparsity_model"] == 0 and "dense baseline" in r.data.tags["mlflow.note.content"] for r in dense
    )


def test_a_card_takes_no_markup() -> None:
    """From a model's text, a base's licence, a file's word: MLflow's pages would show it as pictures and links."""
    assert cards.escape_markdown("<img src=x> & `a` |b| [c](d)") == r"&lt;img src=x&gt; &amp; \`a\` \|b\| \[c\](d)"
    assert cards.code_span("a`b\r\rc\u2028# d\n") == "`a'b \u21b5  \u21b5 c \u21b5 # d`"
    about = cards.model_description("x" * 6000, "<b>")
    assert len(about) == 5000 and "<b>" not in about


def test_a_ticket_of_a_ticket_has_the_base_s_licence(
    made: list[dict[str, Any]], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    further = ("--target", "early", "--measure", "none", "--register", "further")
    lottery_json("prune", "--model", made[0]["model_uri"], *further)
    card = mlflow.MlflowClient().get_model_version("further", "1").description
    assert "tiny-licence" in card and "zeros outside of this target stay" in card


def test_where_a_licence_is_stated(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "LICENSE").write_text("\n\n   MIT License\n\nCopyright\n")
    assert read_licence(tmp_path) == "MIT License"
    (tmp_path / "README.md").write_text("# no header\n")
    assert read_licence(tmp_path) == "MIT License"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert read_licence(tmp_path) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert read_licence(tmp_path) == "MIT License"
    (tmp_path / "README.md").write_text(f"---\nlicense: {'x' * 500}\n---\n")
    assert read_licence(tmp_path) == "x" * 100


def test_an_exported_folder_has_a_card(made: list[dict[str, Any]], cli: Callable[..., Result], tmp_path: Path) -> None:
    cli("export", made[0]["model_uri"], "--to", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and 'license: "tiny-licence"' in card and "from_pretrained" in card
    assert "are those of the ticket" in card


def test_an_edited_measuring_is_refused(made: list[dict[str, Any]], cli: Callable[..., Result], tmp_path: Path) -> None:
    source = mlflow.MlflowClient().get_model_version(NAME, "1").source.removeprefix("models:/")
    location = mlflow.MlflowClient().get_logged_model(source).artifact_location.removeprefix("file://")
    folder = tmp_path / "t"
    shutil.copytree(Path(location) / "data" / "ticket", folder)
    path = folder / "measurements.json"
    found = json.loads(path.read_text())
    mistakes: tuple[dict[str, Any], ...] = (
        {"metrics": {"perplexity": "1"}}, {"kind": "winner"}, {"params": []}, {"surplus": 1}, {"id": "../x"},
        {"ticket": "../../x"}, {"ticket": str(path)}, {"licence": 1}, {"time_ms": "now"}, {"samples": [{"prompt": 1}]},
    )  # fmt: skip
    for wrong in mistakes:
        path.write_text(json.dumps(found | wrong))
        assert "damaged or edited" in cli("publish", folder, code=2).stderr, wrong
    path.write_text("{")
    assert "not readable as JSON" in cli("publish", folder, code=2).stderr
    path.write_text(json.dumps(found | {"ticket": "000000000000"}))
    assert "is of the ticket 000000000000" in cli("publish", folder, code=2).stderr
    path.write_text(json.dumps(found))
    assert "recorded already" in cli("publish", folder).stdout


def test_each_protocol_is_recorded_as_it_is(
    tmp_path: Path, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    """MLflow keeps what it is first told of a data set's name and digest: other tokenizers and runtimes get their own."""
    long = ("--dataset", "builtin", "--limit", "4", "--measure", "perplexity", "--quantize", "int8", "--sparsity", "0")
    first = lottery_json("prune", *long, "--register", "apart")
    second = lottery_json(
        "prune", *long, "--register", "apart", "--runtime", "packed", "--dtype", "float32", "--target", "mlp"
    )
    for made, arithmetic, runtime in ((first, "w8a8", "dense"), (second, "w8a16", "packed")):
        run = mlflow.get_run(made["run_id"])
        (given,) = run.inputs.dataset_inputs
        profile = json.loads(given.dataset.profile)
        assert (profile["int8_arithmetic"], profile["runtime"]) == (arithmetic, runtime)
        assert profile["protocol"] == run.data.tags["protocol"]
        assert run.data.tags["arithmetic"] == f"{profile['dtype']}, {arithmetic}"
    said = cli("list", "--name", "apart").stdout
    assert "w8a8" in said and "w8a16" in said

"""Winners and a person's judgement, through the command and a real store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from click.testing import Result

from lottery.models import texts
from lottery.registry import verdicts
from tests.support.forks import Forks
from tests.support.models import tiny_model

SHORT = ("--dataset", "builtin", "--limit", "6", "--measure", "perplexity", "--register", "none")


def alias(name: str) -> str | None:
    found = mlflow.MlflowClient().get_registered_model(name).aliases.get("winner")
    return None if found is None else str(found)


def test_the_alias_is_the_sparsest_winner(short_text: None, lottery_json: Callable[..., Any], tmp_path: Path) -> None:
    def prune(*arguments: Any) -> dict[str, Any]:
        return lottery_json("prune", "--measure", "perplexity", "--register", "crown", *arguments)

    assert prune("--sparsity", "0.9")["tags"]["winner"] == "no" and alias("crown") is None
    text = tmp_path / "text.txt"
    text.write_text(texts.BUILTIN_TEXT.read_text())
    for why in (
        ("--sparsity", "0.4", "--tolerance", "5"),
        ("--sparsity", "0.45", "--limit", 3),
        ("--sparsity", "0.41", "--window", "256"),
        ("--sparsity", "0.42", "--dataset", text),
        ("--sparsity", "0.01", "--method", "random"),
    ):
        made = prune("--target", "late", *why)
        assert made["tags"]["winner"] == ("not judged: 3 of 12 windows" if "--limit" in why else "yes"), why
        assert alias("crown") is None, why
    first = prune("--target", "late", "--sparsity", "0.3")
    assert first["tags"]["winner"] == "yes" and first["model_uri"] == f"models:/crown/{alias('crown')}"
    again = prune("--target", "late", "--sparsity", "0.4")  # an old version, now judged by the default tolerance
    assert again["model_uri"] == "models:/crown/2" and alias("crown") == "2"
    assert prune("--sparsity", "0.45", "--target", "late")["model_uri"] == "models:/crown/3"  # limited no more
    assert "limited" not in mlflow.MlflowClient().get_model_version("crown", "3").tags and alias("crown") == "3"
    assert prune("--target", "late", "--sparsity", "0.2")["tags"]["winner"] == "yes" and alias("crown") == "3"

    client = mlflow.MlflowClient()
    client.delete_registered_model_alias("crown", "winner")
    verdicts.set_winner_alias(client, "crown")
    assert alias("crown") == "3"
    location = client.get_logged_model(
        client.get_model_version("crown", "3").source.removeprefix("models:/")
    ).artifact_location
    shutil.rmtree(Path(location.removeprefix("file://")) / "data")
    again = prune("--sparsity", "0.45", "--target", "late")  # a new version, since the files of that one are gone
    assert again["model_uri"] == f"models:/crown/{alias('crown')}" != "models:/crown/3"


def test_a_version_keeps_the_verdict_that_its_alias_is_by(short_text: None, lottery_json: Callable[..., Any]) -> None:
    arguments = ("prune", "--target", "late", "--sparsity", "0.37", "--measure", "perplexity", "--register", "verdict")

    def listed() -> tuple[dict[str, Any], str]:
        (row,) = lottery_json("list", "--name", "verdict")["tickets"]
        return row, mlflow.MlflowClient().get_model_version("verdict", "1").tags["winner"]

    limited = lottery_json(*arguments, "--limit", 3)
    row, winner = listed()
    assert row["winner"] == winner == "not judged: 3 of 12 windows" and row["aliases"] == []
    assert row["metrics"]["perplexity"] == limited["metrics"]["perplexity"] and row["dataset"].endswith("first3")
    usual = lottery_json(*arguments)
    strict = lottery_json(*arguments, "--tolerance", "0.00001")
    other = lottery_json(*arguments, "--window", "64")
    assert [made["tags"]["winner"] for made in (usual, strict)] == ["yes", "no"]
    row, winner = listed()
    assert (row["winner"], winner, row["aliases"]) == ("yes", "yes", ["winner"])
    assert row["metrics"]["perplexity"] == usual["metrics"]["perplexity"] != other["metrics"]["perplexity"]
    assert not row["dataset"].endswith("first3")


def test_the_alias_is_right_when_runs_finish_at_once(forks: Forks, untrained: Path) -> None:
    command = ("prune", "--model", untrained, "--target", "late", "--measure", "perplexity", "--json")
    sparsities = ("0.1", "0.35", "0.2", "0.3")
    ends = forks.run(*((*command, "--register", "crowd", "--sparsity", sparsity) for sparsity in sparsities))
    assert [end["code"] for end in ends] == [0] * 4, ends
    made = [json.loads(end["out"]) for end in ends]
    assert [m["tags"]["winner"] for m in made] == ["yes"] * 4
    assert made[1]["model_uri"] == f"models:/crowd/{alias('crowd')}"


def test_a_person_s_judgement_is_kept_everywhere(
    cli: Callable[..., Result], lottery_json: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    made = lottery_json("prune", "--model", model, "--measure", "samples", "--register", "judged")
    assert "coherent" not in made["tags"]  # nothing is called so by a rule
    said = lottery_json("label", made["run_id"], "--coherent", "no", "--note", "letters at random")
    assert made["model_uri"] in said["tagged"]
    client = mlflow.MlflowClient()
    version = client.get_model_version("judged", "1")
    for tags in (
        client.get_run(made["run_id"]).data.tags,
        version.tags,
        client.get_logged_model(version.source.removeprefix("models:/")).tags,
    ):
        assert (tags["coherent"], tags["note"]) == ("no", "letters at random")
    again = lottery_json("evaluate", "--ticket", "models:/judged/1", "--measure", "samples")
    assert again["tags"]["coherent"] == "no"
    cli("label", again["run_id"], "--coherent", "yes")  # of an evaluation: the model that it used
    tags = client.get_model_version("judged", "1").tags
    assert tags["coherent"] == "yes" and not tags["note"]  # the old reason is none of the new judgement's
    printed = cli("evaluate", "--ticket", "models:/judged/1", "--measure", "samples").stdout
    assert "coherent, to a reader: yes" in printed and "sample: " in printed and "dense:  " in printed

    assert "there is no such run" in cli("label", "0" * 32, "--coherent", "yes", code=2).stderr
    assert "note: it has 501 characters" in cli("label", "x", "--coherent", "no", "--note", "n" * 501, code=2).stderr
    assert "maybe" in cli("label", made["run_id"], "--coherent", "maybe", code=2).stderr


def test_a_judgement_is_read_wherever_the_ticket_is(
    cli: Callable[..., Result], lottery_json: Callable[..., Any], tmp_path: Path
) -> None:
    """In descriptions and tables, of every run of its ticket and protocol, whichever was labelled."""
    model = tiny_model(tmp_path / "model", initializer_range=0.03)
    how = ("--dataset", "builtin", "--limit", "3", "--measure", "perplexity,samples", "--register", "told")
    arguments = ("prune", "--model", model, "--target", "late", *how)
    first, second = lottery_json(*arguments), lottery_json(*arguments)
    client, line = mlflow.MlflowClient(), "- coherent, to a reader: "

    def told(run_id: str) -> list[str]:
        texts = [client.get_run(run_id).data.tags["mlflow.note.content"]]
        texts.append(client.get_model_version("told", "1").description)
        return [said.removeprefix(line) for text in texts for said in text.splitlines() if said.startswith(line)]

    assert told(first["run_id"]) == []
    cli("label", first["run_id"], "--coherent", "no", "--note", "*letters*")
    assert told(first["run_id"]) == told(second["run_id"]) == [r"no (\*letters\*)"] * 2
    cli("label", second["run_id"], "--coherent", "yes")
    third = lottery_json(*arguments)
    assert third["tags"]["coherent"] == "yes"
    for made in (first, second, third):
        assert told(made["run_id"]) == ["yes"] * 2
        assert client.get_run(made["run_id"]).data.tags["coherent"] == "yes"

    for run_id in (second["run_id"], third["run_id"]):  # as a store of before has it: only the oldest run is labelled
        client.delete_tag(run_id, "coherent")
    study = tmp_path / "asked.yaml"
    study.write_text(f"models: ['{model}']\ntarget: [late, early]\nsparsity: [0.5]\n")
    lines = [line.split("|") for line in cli("study", study, *how).stdout.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    coherent = {row[header.index("of all weights") - 1]: row[header.index("coherent")] for row in rows}
    assert coherent == {"dense": "", "late 50%": "yes", "early 50%": ""}
    cli("report", "--study", "asked", "--out", tmp_path / "report")
    assert "coherent: yes" in (tmp_path / "report" / "index.html").read_text()


def test_a_judgement_of_no_text_is_said_to_be_one(
    cli: Callable[..., Result], lottery_json: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model", initializer_range=0.04)
    made = lottery_json("prune", "--model", model, *SHORT)
    said = cli("label", made["run_id"], "--coherent", "no").stderr
    assert said.count("\n") == 1 and f"run={made['run_id']}: it has no samples" in said and "measure=all" in said
    query = f"tags.kind = 'dense' and tags.protocol = '{made['tags']['protocol']}'"
    dense = mlflow.MlflowClient().search_runs(["0"], query)[0].info.run_id
    said = cli("label", dense, "--coherent", "yes").stderr
    assert said.count("\n") == 1 and f"run={dense}: it is a run of the dense base" in said

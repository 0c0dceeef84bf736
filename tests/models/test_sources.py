"""Models from the hub, end to end: the command against a hub on this machine, its cache, and no hub at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors.torch import load_file, save_file

from lottery.models.tensors import DTYPES
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import StoredTicket
from tests.support.hub_server import Fault, Hub, use
from tests.support.models import tiny_model
from tests.support.paths import DATA, STORIES, needs_data

QUICK = ("--measure", "none", "--register", "none")
Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model in three shards by an index, with a copy of the weights in another format beside them, as on the hub."""
    model = tiny_model(tmp_path / "sharded")
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    names, weight_map = sorted(state), dict[str, str]()
    for i in range(3):
        shard = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({n: state[n] for n in names[i::3]}, model / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(names[i::3], shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return model


def test_a_hub_id_from_download_to_registered_model(
    server: Hub, sharded: Path, tmp_path: Path, cli: Cli, lottery_json: Json
) -> None:
    commit = server.add("org/name", sharded)
    made = lottery_json(
        "prune", "--model", "org/name", "--dataset", "builtin", "--limit", "2", "--measure", "perplexity",
        "--out", tmp_path / "t",
    )  # fmt: skip
    assert made["model_uri"].startswith("models:/ticket-name/") and made["tags"]["base"] == "org/name"
    record = StoredTicket(tmp_path / "t").record["base"]
    assert (record["id"], record["revision"]) == ("org/name", commit)
    assert not any("consolidated" in path for path in server.asked)
    # The hub's cache knows the hashes of large files by name; they are those of the files.
    here = lottery_json("prune", "--model", sharded, *QUICK)
    assert here["ticket"] == made["ticket"]
    # The folder of a snapshot is the same base under the same name.
    (snapshot,) = (tmp_path / "home" / "hub" / "models--org--name" / "snapshots").iterdir()
    again = lottery_json("plan", "--model", snapshot)
    assert (again["base"], again["ticket"]) == ("org/name", made["ticket"])


def test_the_hashes_of_the_cache_are_not_computed_again(
    server: Hub, sharded: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", sharded)
    cli("plan", "--model", "org/name", "--target", "mlp")
    from lottery.files import hashes

    computed: list[str] = []
    true = hashes.file_sha256

    def noted(path: Path) -> str:
        computed.append(path.name)
        return true(path)

    monkeypatch.setattr(hashes, "file_sha256", noted)
    cli("prune", "--model", "org/name", "--out", tmp_path / "t", *QUICK)
    assert computed and not any(name.endswith(".safetensors") for name in computed)


def test_a_plan_of_a_hub_id_downloads_no_weights(server: Hub, sharded: Path, lottery_json: Json, cli: Cli) -> None:
    server.add("org/name", sharded)
    found = lottery_json("plan", "--model", "org/name", "--target", "late")
    assert found["base"] == "org/name" and found["layers"] == [1, 2] and set(server.served) == {"config.json"}
    whole = lottery_json("plan", "--model", sharded, "--target", "late")
    assert found["tensors"] == whole["tensors"]


def test_revisions(server: Hub, sharded: Path, tmp_path: Path, cli: Cli, lottery_json: Json) -> None:
    server.add("org/name", sharded)
    other = tiny_model(tmp_path / "other", dtype=DTYPES["F16"])
    commit = server.add("org/name", other, branch="half")
    for revision in ("half", commit):
        cli("prune", "--model", f"org/name@{revision}", "--out", tmp_path / revision, *QUICK)
        record = StoredTicket(tmp_path / revision).record["base"]
        assert (record["revision"], record["dtype"]) == (commit, "F16")
    said = cli("prune", "--model", "org/name@nope", "--out", tmp_path / "t", *QUICK, code=2).stderr
    assert "model=org/name@nope" in said and "revision" in said and not (tmp_path / "t").exists()


def test_masks_find_their_base_in_the_cache_and_at_the_hub(
    server: Hub, sharded: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", sharded)
    for storage in ("packed", "mask"):
        cli("prune", "--model", "org/name", "--storage", storage, "--out", tmp_path / storage, *QUICK)
    packed = StoredTicket(tmp_path / "packed")

    def same(base: str = "auto") -> bool:
        mask = open_ticket(tmp_path / "mask", base)
        return all(packed.tensor(name).equal(mask.tensor(name)) for name in packed.tensors)

    (tmp_path / "mask" / "measurements.json").unlink()  # the record alone must do
    served = server.served.total()
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    assert same() and server.served.total() == served  # out of the cache
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    shutil.rmtree(tmp_path / "home")
    said = cli("verify", "--ticket", tmp_path / "mask", code=2).stderr
    assert "its base org/name could not be opened" in said and "offline" in said and "model-00001-of-00003" not in said
    assert same(str(sharded))  # at a path
    use(monkeypatch, server.url, tmp_path / "home")
    assert same() and server.served.total() > served  # from the hub
    # The base moves on: the pinned commit is what counts, as long as the hub has it.
    changed = Path(shutil.copytree(sharded, tmp_path / "changed"))
    shard = changed / "model-00002-of-00003.safetensors"
    state = load_file(shard)
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, shard, {"format": "pt"})
    server.add("org/name", sharded, branch="v1")
    server.add("org/name", changed)
    assert same()
    said = cli("verify", "--ticket", tmp_path / "mask", "--base", "org/name", code=2).stderr
    assert "base=org/name" in said and f"{shard.name} is not the one" in said and "at revision" in said


def test_a_registered_ticket_of_a_hub_base_is_measured_against_it(
    server: Hub, sharded: Path, cli: Cli, lottery_json: Json, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.add("org/other", sharded)
    made = lottery_json("prune", "--model", "org/other", "--storage", "mask", "--measure", "none")
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "home", offline=True)
    more = ("--dataset", "builtin", "--limit", "2", "--measure", "perplexity")
    again = lottery_json("evaluate", "--ticket", made["model_uri"], *more)
    assert again["metrics"]["perplexity_ratio"] > 0
    further = lottery_json("prune", "--model", made["model_uri"], "--sparsity", "0.8", *more)
    assert further["model_uri"].startswith("models:/ticket-other/") and further["metrics"]["perplexity_ratio"] > 0


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (Fault(status=500), 1, "500"),
        (Fault(drop_after=1000), 1, "was lost"),
        (Fault(hang_s=30, method="GET"), 1, "did not answer in time"),
        (Fault(status=403, code="GatedRepo"), 2, "HF_TOKEN"),
        (Fault(status=404, code="EntryNotFound"), 2, "model-00002"),
    ],
    ids=["500", "dropped", "silent", "gated", "missing"],
)
def test_a_download_that_fails_leaves_nothing_and_the_same_command_goes_on(
    fault: Fault, code: int, says: str, server: Hub, sharded: Path, tmp_path: Path, cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import time

    use(monkeypatch, server.url, tmp_path / "home", seconds=1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.add("org/name", sharded)
    server.faults["model-00002"] = fault
    result = cli("prune", "--model", "org/name", "--out", tmp_path / "t", *QUICK, code=code)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "model=org/name" in lines[0] and says in lines[0], result.stderr
    assert not (tmp_path / "t").exists() and "Traceback" not in result.output
    server.faults.clear()
    cli("prune", "--model", "org/name", "--out", tmp_path / "t", *QUICK)
    shard = "model-00001-of-00003.safetensors"
    assert server.served[shard] == (sharded / shard).stat().st_size  # complete files are kept


def test_only_pickled_weights_are_refused_before_anything_is_read(
    server: Hub, sharded: Path, tmp_path: Path, cli: Cli
) -> None:
    for path in sharded.glob("*.safetensors*"):
        path.unlink()
    (sharded / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    server.add("org/name", sharded)
    said = cli("prune", "--model", "org/name", "--out", tmp_path / "t", *QUICK, code=2).stderr
    assert "pickle" in said and "refs/pr" in said and "pytorch_model.bin" not in server.served


@needs_data
def test_the_real_model_and_wikitext_from_the_hub_and_again_without_it(
    server: Hub, tmp_path: Path, lottery_json: Json, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("karpathy/stories260K", STORIES)
    server.add("Salesforce/wikitext", DATA / "wikitext", kind="datasets")
    more = ("--model", "karpathy/stories260K", "--limit", "3", "--measure", "perplexity")
    made = lottery_json("prune", *more)
    assert made["model_uri"].startswith("models:/ticket-stories260K/")
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    asked = len(server.asked)
    again = lottery_json("prune", *more, "--sparsity", "0.6")
    assert again["metrics"]["perplexity"] > made["metrics"]["perplexity"] and len(server.asked) == asked
    assert again["tags"]["protocol"] == made["tags"]["protocol"]

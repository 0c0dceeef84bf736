"""An allocation's file: what each tensor loses, what is part of a ticket's name, and what a file may not say."""

import json
import math
import re
from pathlib import Path

import pytest

from lottery.ticket.stored import StoredTicket
from tests.pruning.test_calibrated import CALIBRATED, QUICK, Cli, Json
from tests.support.allocated import by_layer, layer_of, removed, sizes, uneven_model
from tests.support.refused import refused
from tests.support.weights import tensors
from tests.support.words import write_random_words


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven_model(tmp_path_factory.mktemp("models") / "uneven")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_words(tmp_path_factory.mktemp("text") / "calibration.txt")


def test_a_file_says_what_each_tensor_loses(model: Path, tmp_path: Path, lottery_json: Json, cli: Cli) -> None:
    file = tmp_path / "first.yaml"
    file.write_text(
        "model.layers.1.mlp.up_proj.weight: 0\n'*.0.*q_proj*': 1.0\nmlp@late: 0.75\nattention: .5\n'*': 0.25\n"
    )
    numel = sizes(model)

    def share(name: str) -> float:  # the first line that matches decides
        if name == "model.layers.1.mlp.up_proj.weight":
            return 0
        if ".0." in name and "q_proj" in name:
            return 1
        if ".mlp." in name and layer_of(name) >= 2:
            return 0.75
        return 0.5 if "self_attn" in name else 0.25

    wanted = {name: round(share(name) * n) for name, n in numel.items()}
    mean = sum(share(name) * n for name, n in numel.items()) / sum(numel.values())
    asked = ("--model", model, "--sparsity", mean)
    planned = lottery_json("plan", *asked, "--allocation", file)
    made = lottery_json("prune", *asked, "--allocation", file, "--out", tmp_path / "t", *QUICK)
    assert removed(tmp_path / "t") == wanted
    assert planned["ticket"] == made["ticket"]
    of_plan = {n: math.prod(e["shape"]) - e["requested"] for n, e in planned["tensors"].items() if "requested" in e}
    assert of_plan == wanted
    layers = by_layer(wanted) / by_layer(numel)
    shown = cli("plan", *asked, "--allocation", file).stdout
    words = ", ".join(f"{i} {100 * s:.1f}%" for i, s in list(enumerate(layers))[:2])
    assert layers[2] == layers[3]
    assert f"allocation={file}: the layers lose {words}, 2-3 {100 * layers[2]:.1f}%" in shown
    record = json.loads((tmp_path / "t" / "ticket.json").read_text())
    assert record["spec"]["allocation"][:2] == [["model.layers.1.mlp.up_proj.weight", 0.0], ["*.0.*q_proj*", 1.0]]
    assert str(tmp_path) not in json.dumps(record["spec"])
    file.rename(tmp_path / "second.yml")  # the name does not count, and neither does how a number is written
    content = (tmp_path / "second.yml").read_text()
    (tmp_path / "second.yml").write_text(content.replace("1.0", "1") + "# a remark\n")
    again = lottery_json("plan", *asked, "--allocation", tmp_path / "second.yml")
    assert again["ticket"] == made["ticket"]
    (tmp_path / "second.yml").write_text(content + "mlp@3: 0.1\n")  # another content, though it changes no count
    assert lottery_json("plan", *asked, "--allocation", tmp_path / "second.yml")["ticket"] != made["ticket"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ("it holds no lines", "mlp@late: 0.6")),
        ("- 0.5", ("it holds no lines",)),
        ("all: [0.5]", ("all: it holds no single number",)),
        ("all: {a: 1}", ("all: it holds no single number",)),
        ("all: 1.2", ("all=1.2", "give a number from 0 to 1")),
        ("all: -0.1", ("all=-0.1", "from 0 to 1")),
        ("all: nan", ("all=nan",)),
        ("all: 50%", ("all=50%", "50% is 0.5")),
        ("all: 0.5\nall: 0.6", ("not readable as YAML", "'all' appears twice")),
        ("all: [0.5", ("not readable as YAML",)),
        ("atention: 0.5\nmlp: 0.5", ("'atention' is unknown", "did you mean attention")),
        ("mlp@9: 0.5\nall: 0.5", ("'9' names no layers", "0-3")),
        (
            "model.layers.*.mlp.up_prj.weight: 0.5\nall: 0.5",
            ("matches no tensor of target=all", "did you mean model.layers.*.mlp.up_proj.weight"),
        ),
        (
            "'*.experts.*': 0.5\nall: 0.5",
            ("matches no tensor of target=all", "the first of its tensors is 'model.layers.0."),
        ),
        ("embeddings: 0.5\nall: 0.5", ("the pattern 'embeddings' matches no tensor of target=all",)),
        ("mlp: 0.5", ("no pattern matches 'model.layers.0.self_attn.k_proj.weight' and 15 more of target=all", "'*'")),
        ("all: 0.6", ("its mean over the targeted weights is 0.6", "sparsity=0.5", "give sparsity=0.6")),
        ("mlp@late: 0.7\nall: 0.5", ("its mean over the targeted weights is 0.5", "sparsity=0.5")),
    ],
)
@pytest.mark.parametrize("command", ["prune", "plan"])
def test_a_file_that_cannot_be_used(
    command: str, content: str, says: tuple[str, ...], model: Path, tmp_path: Path, cli: Cli
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    more = ("--out", tmp_path / "t", *QUICK) if command == "prune" else ()
    refused(cli(command, "--model", model, "--allocation", file, *more, code=2), f"allocation={file}: ", *says)
    assert not (tmp_path / "t").exists()


def test_the_mean_that_the_message_names_is_taken(model: Path, tmp_path: Path, cli: Cli, lottery_json: Json) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mlp: 0.617\nattention: 0.333\n")
    said = cli("plan", "--model", model, "--allocation", file, code=2).stderr
    found = re.search(r"give (sparsity=[\d.]+)", said)
    assert found
    lottery_json("plan", "--model", model, "--allocation", file, "--sparsity", found[1].removeprefix("sparsity="))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--allocation", "owls"), ("allocation=owls", "owl:M:LAMBDA")),
        (("--allocation", "owl:5"), ("allocation=owl:5", "owl:M:LAMBDA")),
        (("--allocation", "owl:0:0.1"), ("allocation=owl:0:0.1", "M above 0")),
        (("--allocation", "owl:5:0.6"), ("allocation=owl:5:0.6", "up to 0.5")),
        (("--allocation", "owl:5:nan"), ("allocation=owl:5:nan",)),
        (("--allocation", "even"), ("allocation=even", "uniform, owl, alpha", ".yaml")),
        (("--allocation", "no/such.yaml"), ("allocation=no/such.yaml: there is no such file",)),
        (("--allocation", "alpha", "--scope", "global"), ("allocation=alpha", "scope=global", "scope=layer")),
        (("--allocation", "x.yaml", "--scope", "global"), ("allocation=x.yaml", "scope=global")),
        (("--allocation", "alpha", "--pattern", "2:4"), ("allocation=alpha", "more than half", "pattern=2:4")),
        (("--allocation", "owl:3:0.1", "--pattern", "4:8"), ("allocation=owl:3:0.1", "pattern=4:8", "allocation=uniform")),
    ],
)  # fmt: skip
def test_what_no_allocation_is(arguments: tuple[str, ...], says: tuple[str, ...], model: Path, cli: Cli) -> None:
    refused(cli("prune", "--model", model, *arguments, *QUICK, code=2), *says)


def test_a_pattern_gives_each_tensor_half(model: Path, tmp_path: Path, cli: Cli, lottery_json: Json) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mlp@0: 0.6\nmlp@1: 0.4\nall: 0.5\n")
    said = cli("prune", "--model", model, "--pattern", "2:4", "--allocation", file, *QUICK, code=2)
    refused(
        said, f"allocation={file}: it asks for 0.6 of 'model.layers.0.mlp.down_proj.weight'", "pattern=2:4 removes 0.5"
    )
    file.write_text("all: 0.5\n")
    made = lottery_json("prune", "--model", model, "--pattern", "2:4", "--allocation", file, "--out", tmp_path / "t", *QUICK)  # fmt: skip
    assert made["metrics"]["sparsity_target"] == 0.5


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_tensor_may_lose_everything_or_nothing(
    method: str,
    model: Path,
    words: Path,
    tmp_path: Path,
    lottery_json: Json,
) -> None:
    file, numel = tmp_path / "a.yaml", sizes(model, ".mlp.")
    file.write_text("mlp@1: 1\nmlp@2: 0\nmlp: 0.5\n")
    look = ("--calibration", words, "--nsamples", 2, "--seqlen", 32)
    asked = ("--model", model, "--target", "mlp", "--method", method, "--allocation", file)
    lottery_json("prune", *asked, *look, "--out", tmp_path / "t", *QUICK)
    shares = {0: 0.5, 1: 1, 2: 0, 3: 0.5}
    assert removed(tmp_path / "t") == {n: round(shares[layer_of(n)] * c) for n, c in numel.items()}
    base = tensors(model)["model.layers.2.mlp.up_proj.weight"]
    assert (StoredTicket(tmp_path / "t").tensor("model.layers.2.mlp.up_proj.weight") == base).all()

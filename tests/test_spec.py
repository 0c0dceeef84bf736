"""Parameters, identity, and the files that must say the same as each other."""

import re
from dataclasses import fields

import click
import pytest
import yaml

from lottery.cli.main import main
from lottery.errors import InputError
from lottery.spec import Spec, dense_id, ticket_id
from lottery.study.design import read_study
from tests.support.paths import ROOT


def test_the_identity_of_a_ticket_is_pinned() -> None:
    spec = Spec.parse(target="late", sparsity="0.50")
    base = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    assert ticket_id(spec, base, ["x.weight", "y.weight"]) == "10cfaf51cb87"
    assert dense_id(base) == "baf78d467ed6"
    assert (
        ticket_id(Spec.parse(target="late", seed=7), base, ["y.weight", "x.weight"]) == "10cfaf51cb87"
    )  # nothing drawn
    drawn = {ticket_id(Spec.parse(method="random", seed=s), base, ["x.weight"]) for s in (0, 1)}
    assert len(drawn) == 2


def test_values_as_typed_and_as_python() -> None:
    assert Spec.parse(sparsity="0.50") == Spec.parse(sparsity=0.5) == Spec()
    assert Spec.parse(window="512", limit=3).params()["window"] == "512"
    assert Spec.parse(measure="speed,perplexity").measures == ("perplexity", "speed")
    assert Spec.parse(sparsity="0.3333333").params()["sparsity"] == "0.3333333"
    spec = Spec.parse(measure="speed,perplexity")
    assert spec.agrees_with({"sparsity": "0.50", "measure": "speed, perplexity", "target": " all", "foo": "1"}) is None
    assert spec.agrees_with({"sparsity": "0.51"}) == "sparsity"


@pytest.mark.parametrize(
    "given",
    [{"sparsity": v} for v in ("nan", "-0.1", "1.01", "half", "", None, "inf")]
    + [{"window": v} for v in ("1", "0", "x", "1.5")]
    + [
        {"limit": "0"},
        {"seed": "-1"},
        {"tolerance": "-1"},
        {"control": "-1"},
        {"quantize": "int4"},
        {"quantize": "int8", "storage": "mask"},
    ]
    + [{"pattern": "2:4", "sparsity": 0.6}, {"pattern": "4:8", "scope": "global"}, {"pattern": "1:4"}]
    + [{"measure": "perplexity,foo"}, {"method": "wanda"}, {"target": " "}, {"sparcity": 0.5}, {"dtype": "int8"}],
)
def test_a_wrong_value_is_named(given: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        Spec.parse(**given)
    assert next(iter(given)) in str(caught.value) and "\n" not in str(caught.value)


def test_mlproject_says_what_the_command_line_says() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    for entry, name in (("main", "prune"), ("evaluate", "evaluate"), ("generate", "generate")):
        point = project["entry_points"][entry]
        command = main.commands[name]
        options = {
            p.name: p for p in command.params if isinstance(p, click.Option) and p.name not in ("as_json", "out")
        }
        assert set(point["parameters"]) == set(options)
        for parameter, said in point["parameters"].items():
            if parameter == "ticket":  # asked for: by MLflow, and by the command itself
                assert "default" not in said
            else:
                assert str(said["default"]) == str(options[parameter].default), (entry, parameter)
            assert f"--{parameter} {{{parameter}}}" in point["command"]
        assert point["command"].startswith(f"python -m lottery {name} ")
    assert set(project["entry_points"]["main"]["parameters"]) == {f.name for f in fields(Spec)}


def test_mlproject_s_studies() -> None:
    """They ask by the presets' names, in the words of the command, and say of each parameter what it is anyhow."""
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    options = {p.name for p in main.commands["study"].params}
    default = {f.name: str(f.default) for f in fields(Spec)} | {"budget": "none"}
    for name in ("cliff", "locate", "map", "compare"):
        said, command = dict(points[name]["parameters"]), points[name]["command"]
        model = "models" if name == "compare" else "model"
        assert list(said) == [model, "budget", "method", "quantize", "dataset", "seed"]
        assert command.startswith(f"python -m lottery study {name} --models {{{model}}} ")
        assert said.pop(model)["default"] == ",".join(read_study(name).models)
        for parameter, about in said.items():
            assert parameter in options and str(about["default"]) == default[parameter]
            assert f"--{parameter} {{{parameter}}}" in command


def test_conda_yaml_and_pyproject_follow_the_lock() -> None:
    lock = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][0-9A-Za-z.]*)", line).groups()  # type: ignore[union-attr]
        lock[re.sub(r"[_.]", "-", name.lower())] = version
    assert lock["torch"] == "2.13.0" and not any("nvidia" in name for name in lock)
    dependencies = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    assert any("whl/cu126" in line for line in pip)  # the build that a V100 needs
    pinned = dict(line.split("==") for line in pip if not line.startswith("--"))
    assert pinned == {name: lock[name] for name in pinned}
    wanted = (ROOT / "pyproject.toml").read_text()
    direct = re.search(r"^dependencies = \[(.*?)\]", wanted, re.S | re.M)[1]  # type: ignore[index]
    assert set(re.findall(r'"([a-z0-9-]+)', direct)) == set(pinned)

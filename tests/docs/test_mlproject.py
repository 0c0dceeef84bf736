"""The files that must say the same as each other: MLproject, conda.yaml, requirements.lock, pyproject.toml."""

import re
from dataclasses import fields

import click
import yaml

from lottery.cli.main import main
from lottery.hypothesis.design import OF_COMMAND, read_hypothesis
from lottery.spec import Spec
from lottery.study.design import read_study
from tests.support.paths import ROOT


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


STUDY_PARAMS = ["budget", "method", "allocation", "calibration", "nsamples", "seqlen", "propagate", "quantize", "dataset", "window", "limit",
                "runtime", "measure", "control", "seed"]  # fmt: skip


def test_mlproject_s_studies() -> None:
    """They ask by the presets' names, in the words of the command, and say of each parameter what the preset says
    anyhow."""
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    options = {p.name for p in main.commands["study"].params}
    for name in ("cliff", "locate", "map", "methods", "compare"):
        said, command, preset = dict(points[name]["parameters"]), points[name]["command"], read_study(name)
        default = {f.name: str(f.default) for f in fields(Spec)} | {"budget": "none"}
        default |= {parameter: ",".join(values) for parameter, values in preset.parameters.items()}
        model = "models" if name == "compare" else "model"
        assert list(said) == [model, *(p for p in STUDY_PARAMS if (name, p) != ("methods", "method"))]
        assert command.startswith(f"python -m lottery study {name} --models {{{model}}} ")
        assert said.pop(model)["default"] == ",".join(preset.models)
        for parameter, about in said.items():
            assert parameter in options and str(about["default"]) == default[parameter], (name, parameter)
            assert f"--{parameter} {{{parameter}}}" in command
        given = {parameter: str(about["default"]) for parameter, about in said.items() if parameter != "budget"}
        assert preset.with_options(",".join(preset.models), "none", given).id == preset.id


def test_mlproject_asks_a_hypothesis_as_the_command_does() -> None:
    """The four words of the question are parameters; how the work is divided is left to the command."""
    point = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]["hypothesis"]
    options = {o.name: o.default for o in main.commands["hypothesis"].params}
    said = {name: str(about["default"]) for name, about in point["parameters"].items()}
    assert said == {name: str(options[name]) for name in ("preset", *OF_COMMAND)}
    words = " ".join(f"--{name} {{{name}}}" for name in said)
    assert point["command"] == f"python -m lottery hypothesis {words}"
    assert read_hypothesis("quick").with_options(**{n: said[n] for n in OF_COMMAND}).id == read_hypothesis("quick").id


def test_conda_yaml_and_pyproject_follow_the_lock() -> None:
    lock = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][0-9A-Za-z.]*)", line).groups()  # type: ignore[union-attr]  # no match: fails
        lock[re.sub(r"[_.]", "-", name.lower())] = version
    assert lock["torch"] == "2.13.0" and not any("nvidia" in name for name in lock)
    dependencies = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    assert any("whl/cu126" in line for line in pip)  # the build that a V100 needs
    pinned = dict(line.split("==") for line in pip if not line.startswith("--"))
    assert pinned == {name: lock[name] for name in pinned}
    wanted = (ROOT / "pyproject.toml").read_text()
    direct = re.search(r"^dependencies = \[(.*?)\]", wanted, re.S | re.M)[1]  # type: ignore[index]  # no match: fails
    assert set(re.findall(r'"([a-z0-9-]+)', direct)) == set(pinned)


def test_mlproject_asks_for_a_report_as_the_command_does() -> None:
    point = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]["report"]
    options = {o.name: o.default for o in main.commands["report"].params}
    assert {name: said["default"] for name, said in point["parameters"].items()} == {
        k: options[k] for k in ("study", "out")
    }
    assert point["command"].split() == ["python", "-m", "lottery", "report", "--study", "{study}", "--out", "{out}"]

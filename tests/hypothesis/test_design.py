"""What a hypothesis asks: presets, files that anybody writes, and what each wrong one is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lottery.hypothesis.design import presets, read_hypothesis
from tests.support.hypotheses import everything, write
from tests.support.refused import refused

Cli = Callable[..., Result]
ROWS = [{"arm": "rewound", "density": 0.64}]


def test_the_presets() -> None:
    assert presets() == ["full", "quick"]
    quick, full = read_hypothesis("quick"), read_hypothesis("full")
    assert (quick.steps, quick.seeds, quick.rewind, quick.rate, quick.scope) == (800, 1, 0.05, 0.2, "global")
    assert quick.barriers[0].arm == ("rewound", "shuffled") and full.seeds == 3
    arms = {arm for row in full.grid for arm in row.arm}
    assert len(arms) == 20 and {d for row in full.grid for d in row.density} == {1.0, 0.41, 0.21, 0.11, 0.055}


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_what_show_prints_is_the_same_hypothesis(preset: str, cli: Cli, tmp_path: Path) -> None:
    shown = cli("hypothesis", "--preset", preset, "--show").stdout
    copy = tmp_path / "copy.yaml"
    copy.write_text(shown)
    assert read_hypothesis(str(copy)) == read_hypothesis(preset)
    assert cli("hypothesis", "--preset", copy, "--show").stdout == shown
    assert "\ntext:" not in shown and "\ndevice:" not in shown


def test_the_id_of_quick_stays() -> None:
    """A hypothesis that had another id tomorrow would not find its run."""
    quick = read_hypothesis("quick")
    assert quick.id == "5b3266e4a814"
    assert quick.with_options(text="stories", seed="0", device="auto").id == quick.id
    assert quick.with_options(text="stories", seed="1", device="auto").id != quick.id
    # what text and device are, and not how they are written, is in the id of the laboratory
    assert {quick.with_options(**o).id for o in ({"text": "a.txt"}, {"text": "./a.txt"}, {"device": "cpu"})} == {
        quick.id
    }


def test_a_file_is_named_by_itself_or_by_its_name(tmp_path: Path) -> None:
    assert read_hypothesis(str(write(tmp_path, "mine", grid=ROWS))).name == "mine"
    assert read_hypothesis(str(write(tmp_path, "mine", grid=ROWS, name="other"))).name == "other"


def test_one_value_is_a_list_of_one_and_twice_is_once(tmp_path: Path) -> None:
    asked = read_hypothesis(str(write(tmp_path, "a", grid=[{"arm": "dense", "times": [1, 2, 1], "lr": 0.01}])))
    assert asked.grid[0].times == (1, 2) and asked.grid[0].lr == (0.01,) and asked.grid[0].density == (1.0,)


# what is wrong -> what the one line says
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown key": ({"grid": ROWS, "step": 5}, ("unknown key 'step'", "did you mean steps")),
    "an unknown key of a row": ({"grid": [{"arm": "dense", "denisty": 1}]}, ("unknown key 'denisty'", "density")),
    "an unknown key of a line": ({"grid": ROWS, "barriers": [{"arm": "dense", "lr": 0.1}]}, ("unknown key 'lr'",)),
    "an unknown arm": ({"grid": [{"arm": "rewond", "density": 0.64}]}, ("arm=rewond", "did you mean rewound")),
    "an unknown kind": ({"grid": ROWS, "barriers": [{"arm": "dense", "kind": "odd"}]}, ("kind=odd", "order, level")),
    "a density between rounds": (
        {"grid": [{"arm": "rewound", "density": 0.7}], "rate": 0.5},
        ("density=0.7", "reach 0.5, 0.25", "another rate"),
    ),
    "a density above 1": ({"grid": [{"arm": "rewound", "density": 64}]}, ("density=64", "0.0001 to 1")),
    "a rewind point at the end": ({"grid": ROWS, "rewind": 1}, ("rewind=1", "step 60 of 60", "a smaller share")),
    "a rewind point of a row": (
        {"grid": [{"arm": "rewound", "density": 0.64, "rewind": [0, 0.995]}]},
        ("rewind=0.995", "step 60 of 60"),
    ),
    "a rewind point of a line": ({"grid": ROWS, "barriers": [{"arm": "dense", "rewind": 1}]}, ("barriers", "rewind=1")),
    "dense with a density": ({"grid": [{"arm": ["dense", "rewound"], "density": 0.64}]}, ("arm=dense", "its own")),
    "a ticket without one": ({"grid": [{"arm": ["dense", "snip"]}]}, ("arm=snip", "density below 1")),
    "a line of no density": ({"grid": ROWS, "barriers": [{"arm": "rewound"}]}, ("barriers", "density below 1")),
    "levels of dense": ({"grid": ROWS, "barriers": [{"arm": "dense", "kind": "level"}]}, ("kind=level", "kind=order")),
    "a width that heads do not divide": ({"grid": ROWS, "width": 30}, ("width=30", "heads=2", "that 4 divides")),
    "a text": ({"grid": ROWS, "text": "stories"}, ("text is an option of the command", "--text")),
    "a seed": ({"grid": ROWS, "seed": 1}, ("seed is an option of the command", "--seed")),
    "a device": ({"grid": ROWS, "device": "cpu"}, ("device is an option of the command", "--device")),
    "a word for a number": ({"grid": ROWS, "steps": "many"}, ("steps=many", "a whole number from 20")),
    "a list for a number": ({"grid": ROWS, "steps": [60, 120]}, ("steps=", "a whole number")),
    "no seed": ({"grid": ROWS, "seeds": 0}, ("seeds=0", "from 1")),
    "a rate that is no number": ({"grid": ROWS, "lr": "nan"}, ("lr=nan", "0 to 1")),
    "a yes that is none": ({"grid": ROWS, "compile": "maybe"}, ("compile=maybe", "no, yes")),
    "part of a step": ({"grid": [{"arm": "dense", "times": 1.5}]}, ("times=1.5", "a whole number")),
    "a mapping for a value": ({"grid": [{"arm": {"name": "dense"}}]}, ("arm holds no plain value",)),
    "an empty list": ({"grid": [{"arm": "dense", "lr": []}]}, ("lr holds no plain value",)),
    "a row without arm": ({"grid": [{"density": 0.64}]}, ("names no arm", "rewound")),
    "a grid of words": ({"grid": ["dense"]}, ("grid holds no list of rows",)),
    "a grid that is a word": ({"grid": "dense"}, ("grid holds no list of rows",)),
    "an empty grid": ({"grid": []}, ("grid holds no list of rows",)),
    "no grid": ({}, ("grid holds no list of rows",)),
    "a name that is a path": ({"grid": ROWS, "name": "../up"}, ("name=../up", "letters, digits")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_gets_one_line_and_writes_nothing(wrong: str, cli: Cli, tmp_path: Path) -> None:
    keys, says = WRONG[wrong]
    path, before = write(tmp_path, "wrong", **keys), everything()
    refused(cli("hypothesis", "--preset", path, code=2), f"preset={path}", *says)
    assert everything() == before


NOT_YAML = {
    "empty": (b"", "it holds no keys"),
    "a list": (b"- arm: dense\n", "it holds no keys"),
    "a key twice": (b"steps: 60\nsteps: 80\n", "the key 'steps' appears twice"),
    "a key of a row twice": (b"grid:\n- {arm: dense, arm: snip}\n", "the key 'arm' appears twice"),
    "a tab": (b"grid:\n\t- arm: dense\n", "not readable as YAML"),
    "no text": (b"\xff\xfe\x00", "not readable as YAML"),
    "an object of Python": (b"!!python/object/apply:os.system ['true']\n", "it holds no keys"),
}


@pytest.mark.parametrize("what", NOT_YAML)
def test_a_file_that_is_no_mapping(what: str, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(NOT_YAML[what][0])
    refused(cli("hypothesis", "--preset", path, code=2), f"preset={path}", NOT_YAML[what][1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--preset", "quik"), ("preset=quik", "known: full, quick")),
        (("--preset", "gone.yaml"), ("preset=gone.yaml", "give a YAML file")),
        (("--seed", "-1"), ("seed=-1", "a whole number from 0")),
        (("--device", "tpu"), ("device=tpu", "auto, cpu, cuda")),
        (("--text", " "), ("text is empty", "stories")),
        (("--text", "gone.txt"), ("text=gone.txt", "there is no such file")),
        (("--jobs", "0"), ("jobs=0", "a whole number from 1, or auto")),
        (("--part", "line-3-0", "--jobs", "2"), ("--jobs", "with --part it has no effect")),
        (("--show", "--retrain", "models:/a/1"), ("--show", "with --retrain it has no effect")),
        (("--partition", "gpu"), ("--partition", "only with --slurm")),
        (("--slurm", "--out", "none"), ("--slurm", "leave out --out")),
    ],
)
def test_a_wrong_option_gets_one_line(options: tuple[str, ...], says: tuple[str, ...], cli: Cli) -> None:
    before = {path for path in everything() if "corpora" not in path}
    refused(cli("hypothesis", *options, code=2), *says)
    assert {path for path in everything() if "corpora" not in path} == before

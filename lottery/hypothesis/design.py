"""This file reads what a hypothesis asks: a small YAML file of lists becomes a frozen record. The presets are such files."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lottery.errors import InputError, did_you_mean
from lottery.files.reading import read_json
from lottery.files.yaml_files import read_yaml
from lottery.parameters import float_range, int_range, nonempty_text, one_of, parameter
from lottery.spec import json_sha256
from lottery.study.design import plain_numbers

PRESETS = Path(__file__).parent.parent / "assets" / "hypotheses"
ARM_NAMES = (
    "dense", "rewound", "original", "oneshot", "tuned", "rewound-rate", "early", "permuted", "signs", "other", "reinit",
    "shuffled", "snip", "snip-shuffled", "grasp", "grasp-shuffled", "synflow", "synflow-shuffled", "random", "untrained",
)  # fmt: skip
KINDS = ("order", "level")
NEAR = 0.12  # a density may differ from a round's by this share of itself


@dataclass(frozen=True)
class Row:
    """One row of the grid: every combination of its values is a training for each seed."""

    arm: tuple[str, ...]
    density: tuple[float, ...] = (1.0,)  # share of the prunable weights that live
    rewind: tuple[float, ...] = ()  # shares of the steps; empty: the hypothesis' own
    lr: tuple[float, ...] = ()  # peak learning rates of the last training; empty: the rate of the chain
    times: tuple[int, ...] = (1,)  # the chain and the training take so many times the steps
    scope: tuple[str, ...] = ()
    seeds: int | None = None  # the first so many of the seeds


@dataclass(frozen=True)
class Line:
    """One row of the barriers: the lines between two copies of a training, or between successive rounds of a chain."""

    arm: tuple[str, ...]
    density: tuple[float, ...] = (1.0,)
    rewind: tuple[float, ...] = ()
    times: tuple[int, ...] = (1,)
    kind: str = "order"  # order: two orders of the data; level: this round and the one before
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What a hypothesis asks. The parameters hold for all trainings."""

    name: str
    question: str = ""
    grid: tuple[Row, ...] = ()
    barriers: tuple[Line, ...] = ()
    text: str = parameter(
        "stories",
        "The text to train on.",
        **nonempty_text("stories, a .txt, .jsonl or .parquet file, or a hub data set"),
    )
    seed: int = parameter(0, "The first seed.", **int_range(0))
    device: str = parameter("auto", "The device of the trainings.", **one_of("auto", "cpu", "cuda"))
    seeds: int = parameter(1, "How many seeds.", **int_range(1))
    layers: int = parameter(4, "Decoder layers.", **int_range(1))
    width: int = parameter(64, "Hidden size.", **int_range(8))
    heads: int = parameter(4, "Attention heads.", **int_range(1))
    inner: int = parameter(168, "Size inside the MLP.", **int_range(4))
    vocabulary: int = parameter(512, "Tokens of the vocabulary, which is made from the text.", **int_range(257))
    context: int = parameter(64, "Tokens of a window.", **int_range(8))
    steps: int = parameter(800, "Steps of a training.", **int_range(20))
    batch: int = parameter(16, "Windows of a step.", **int_range(1))
    lr: float = parameter(0.003, "Peak learning rate of the chain, which makes the masks.", **float_range(0, 1))
    warmup: float = parameter(0.05, "Share of the steps in which the rate rises.", **float_range(0, 0.5))
    decay: float = parameter(0.1, "Weight decay.", **float_range(0, 1))
    clip: float = parameter(1.0, "Greatest norm of a gradient.", **float_range(0.001, 1000))
    rate: float = parameter(0.2, "Share of the living weights that a round removes.", **float_range(0.01, 0.9))
    rewind: float = parameter(0.05, "Step to rewind to, as a share of the steps.", **float_range(0, 1))
    scope: str = parameter(
        "global", "Whether weights are ranked together or within each matrix.", **one_of("global", "layer")
    )
    compile: str = parameter(
        "no", "torch.compile: faster, but two runs may differ in the last bits.", **one_of("no", "yes")
    )

    @property
    def id(self) -> str:
        """12 hexadecimal digits, which do not depend on how text and device are written: `Lab.id` has their content."""
        return json_sha256({k: v for k, v in self.record().items() if k not in ("question", "text", "device")})[:12]

    @property
    def all_seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.seeds)]

    def record(self) -> dict[str, Any]:
        """Returns the hypothesis as its YAML file would hold it."""
        given = {f.name: getattr(self, f.name) for f in PARAMETERS}
        rows = {name: [row_record(row) for row in getattr(self, name)] for name in ("grid", "barriers")}
        return {"name": self.name, "question": self.question} | {k: str(v) for k, v in given.items()} | rows

    def yaml(self) -> str:
        """Returns the text of its YAML file, in which numbers stand without quotes."""
        stated = {k: v for k, v in self.record().items() if k not in OF_COMMAND}
        found = {k: v if k in ("name", "question") else plain_numbers(v) for k, v in stated.items()}
        return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)

    @property
    def tokens_needed(self) -> int:
        """The tokens that one training reads."""
        return self.steps * self.batch * self.context

    def step_of(self, share: float, times: int = 1) -> int:
        """Returns the step that a rewind point, a share of the steps, means."""
        return round(share * self.steps * times)

    def round_of(self, density: float, where: str = "") -> int:
        """Returns the round after which about so many weights live. Raises InputError, which begins with `where`, if no
        round is near."""
        if density == 1:
            return 0
        found = max(1, round(math.log(density) / math.log(1 - self.rate)))
        got = (1 - self.rate) ** found
        if abs(got - density) > NEAR * density:
            ladder = [(1 - self.rate) ** n for n in range(max(1, found - 2), found + 3)]
            raise InputError(
                f"{where}density={density:g}: rounds that remove {self.rate:g} of what lives reach "
                f"{', '.join(f'{d:.3g}' for d in ladder)}; give one of these, or another rate"
            )
        return found

    def with_options(self, **given: str) -> "Hypothesis":
        """Returns the hypothesis with the options of a command line. Raises InputError for a value not allowed."""
        table = {f.name: f.metadata["parse"] for f in PARAMETERS}
        return check(replace(self, **{k: table[k](k, v) for k, v in given.items()}))


PARAMETERS = tuple(f for f in fields(Hypothesis) if "parse" in f.metadata)
OF_COMMAND = ("text", "seed", "device")  # parameters of the command, which no file of a person sets
KEYS = ("name", "question", "grid", "barriers", *(f.name for f in PARAMETERS if f.name not in OF_COMMAND))


def row_record(row: Row | Line) -> dict[str, Any]:
    """Returns a row as its YAML file would hold it; what has its default is left out."""
    found: dict[str, Any] = {}
    for f in fields(row):
        value = getattr(row, f.name)
        if value != f.default:
            words = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
            found[f.name] = words[0] if len(words) == 1 else words
    return found


def presets() -> list[str]:
    """Returns the names of lottery's own hypotheses."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_hypothesis(name: str) -> Hypothesis:
    """Returns a preset by its name, or the hypothesis of a YAML file by its path.

    Raises InputError, which lists similar names, if there is none, and for a key or value that it cannot have.
    """
    path = PRESETS / f"{name}.yaml" if name in presets() else Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():  # what `cluster.submit` wrote for the tasks
        return hypothesis_from_record(read_json(path), f"preset={name}", path.stem, (*KEYS, *OF_COMMAND))
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        raise InputError(f"preset={name}: {did_you_mean(name, presets())}; or give a YAML file (see --show)")
    found = read_yaml(path, f"preset={name}")
    if not isinstance(found, dict):
        raise InputError(f"preset={name}: it holds no keys; `lottery hypothesis --show` prints one to begin with")
    return hypothesis_from_record(found, f"preset={name}", path.stem)


def hypothesis_from_record(found: Mapping[str, Any], where: str, name: str, keys: tuple[str, ...] = KEYS) -> Hypothesis:
    """Returns the hypothesis that a mapping describes. Raises InputError, which begins with `where`, for a wrong one."""
    if given := [key for key in OF_COMMAND if key in found and key not in keys]:
        raise InputError(f"{where}: {given[0]} is an option of the command; leave it out, and give --{given[0]}")
    check_keys(found, keys, where)
    name = str(found.get("name", name))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", name):
        raise InputError(
            f"{where}: name={name}: give at most 61 letters, digits, -, _ and dots, and begin with a letter or a digit"
        )
    values = {f.name: f.metadata["parse"](f"{where}: {f.name}", found[f.name]) for f in PARAMETERS if f.name in found}
    rows: dict[str, Any] = {
        part: tuple(
            read_row(kind, row, f"{where}: {part}") for row in read_list(found.get(part, []), f"{where}: {part}")
        )
        for part, kind in (("grid", Row), ("barriers", Line))
    }
    if not rows["grid"]:
        raise InputError(
            f"{where}: grid holds no list of rows; give rows like `- {{arm: [rewound, permuted], density: 0.21}}`"
        )
    return check(Hypothesis(name=name, question=str(found.get("question", "")), **rows, **values), where)


def check_keys(found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), known)}")


def read_list(found: Any, where: str) -> list[Any]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{where} holds no list of rows; give rows like `- {{arm: rewound, density: 0.21}}`")
    return found


ROW_VALUES: dict[str, Any] = {
    "arm": one_of(*ARM_NAMES)["parse"],
    "density": float_range(0.0001, 1)["parse"],
    "rewind": float_range(0, 1)["parse"],
    "lr": float_range(0, 1)["parse"],
    "times": int_range(1)["parse"],
    "scope": one_of("global", "layer")["parse"],
    "kind": one_of(*KINDS)["parse"],
    "seeds": int_range(1)["parse"],
}


def read_row(kind: type[Any], row: Mapping[str, Any], where: str) -> Any:
    """Returns a row of the grid or of the barriers. Raises InputError for a wrong key or value."""
    check_keys(row, tuple(f.name for f in fields(kind)), where)
    if "arm" not in row:
        raise InputError(f"{where}: a row names no arm; known: {', '.join(ARM_NAMES)}")
    values: dict[str, Any] = {}
    for key, given in row.items():
        words = given if isinstance(given, list) else [given]
        if not words or not all(isinstance(word, str) for word in words):
            raise InputError(f"{where}: {key} holds no plain value; give one value, or a list of values")
        parsed = tuple(dict.fromkeys(ROW_VALUES[key](f"{where}: {key}", word) for word in words))
        values[key] = parsed[0] if key in ("kind", "seeds") else parsed
    return kind(**values)


def check(found: Hypothesis, where: str = "hypothesis") -> Hypothesis:
    """Returns the hypothesis. Raises InputError for values that exclude each other."""
    if found.width % (2 * found.heads):
        raise InputError(
            f"{where}: width={found.width} with heads={found.heads}: each head needs an even number of the width's parts; "
            f"give a width that {2 * found.heads} divides"
        )
    if any(line.kind == "level" and "dense" in line.arm for line in found.barriers):
        raise InputError(f"{where}: barriers: kind=level: arm=dense has no rounds; give another arm, or kind=order")
    for name, row in [("grid", row) for row in found.grid] + [("barriers", line) for line in found.barriers]:
        for density in row.density:
            found.round_of(density, f"{where}: {name}: ")
        sparse = [arm for arm in row.arm if arm != "dense"]
        if sparse and 1.0 in row.density:
            raise InputError(f"{where}: {name}: arm={sparse[0]}: it needs a density below 1; give one, such as 0.21")
        if name == "barriers" and "untrained" in row.arm:
            raise InputError(
                f"{where}: barriers: arm=untrained: two orders of the data end in the same weights; leave it out"
            )
        if "dense" in row.arm and row.density != (1.0,):
            raise InputError(f"{where}: {name}: arm=dense: its density is 1; give it a row of its own without density")
        for share in (found.rewind, *row.rewind):
            if found.step_of(share) >= found.steps:
                raise InputError(
                    f"{where}: {name}: rewind={share:g}: that is step {found.step_of(share)} of {found.steps}, the end; "
                    f"give a smaller share"
                )
    return found

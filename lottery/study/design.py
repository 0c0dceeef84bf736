"""This file reads what a study asks: a small YAML file of lists becomes a frozen record. The presets are such files."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lottery.errors import InputError, did_you_mean
from lottery.files.yaml_files import read_yaml
from lottery.parameters import float_range
from lottery.spec import Spec, json_sha256

PRESETS = Path(__file__).parent.parent / "assets" / "presets"
TICKET_PARAMS = tuple(f.name for f in fields(Spec) if f.name != "model")  # a study may set these for its tickets
SPEC_DEFAULTS = {f.name: (str(f.default),) for f in fields(Spec)}
KEYS = ("name", "question", "models", "budget", "grid")
EACH_LAYER = "@*"  # in a target it stands for every layer: each layer gets a ticket


@dataclass(frozen=True)
class GridRow:
    """One row of a grid, which stands for every combination of its values.

    With `refine` the study also searches the sparsity at which the ratio to dense crosses 1 + tolerance. It searches
    between the sparsities of the row, until the crossing is known to `refine`.
    """

    values: dict[str, tuple[str, ...]]
    refine: float | None = None


@dataclass(frozen=True)
class Study:
    """The question of a study. `parameters` hold for all tickets, but the values in a row of the grid come first."""

    name: str
    question: str
    models: tuple[str, ...]
    grid: tuple[GridRow, ...]
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    budget: tuple[float, ...] = ()  # shares of all parameters to remove, in place of the sparsities

    @property
    def id(self) -> str:
        """12 hexadecimal digits. A study with the same id continues the earlier one."""
        return json_sha256({k: v for k, v in self.record().items() if k != "question"})[:12]

    def record(self) -> dict[str, Any]:
        """Returns the study as its YAML file would hold it."""

        def short(values: dict[str, tuple[str, ...]]) -> dict[str, Any]:
            return {k: v[0] if len(v) == 1 else list(v) for k, v in values.items()}

        rows = [short(row.values) | ({"refine": f"{row.refine:g}"} if row.refine else {}) for row in self.grid]
        budget = {"budget": [str(b) for b in self.budget]} if self.budget else {}
        about = {"name": self.name, "question": self.question, "models": list(self.models)}
        return about | short(self.parameters) | budget | {"grid": rows}

    def yaml(self) -> str:
        """Returns the text of its YAML file, in which numbers stand without quotes."""
        found = self.record()
        found |= {
            key: plain_numbers(value) for key, value in found.items() if key not in ("name", "question", "models")
        }
        return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)

    def combinations(self) -> Iterator[tuple[dict[str, str], GridRow]]:
        """Yields every combination of every row, in order."""
        for row in self.grid:
            values = self.parameters | row.values
            for chosen in itertools.product(*values.values()):
                yield dict(zip(values, chosen, strict=True)), row

    def with_options(self, models: str | None, budget: str | None, parameters: Mapping[str, str | None]) -> "Study":
        """Returns the study with the options of a command line, which replace those of the file.

        The values in a row of the grid stay. Raises InputError for values that are not allowed.
        """
        given = {k: check_values("parameters", k, v) for k, v in parameters.items() if v is not None}
        # Defaults are left out, so that the same question has one id. The storage stays, since `specs_of` may replace
        # its default.
        stated = {k: v for k, v in (self.parameters | given).items() if v != SPEC_DEFAULTS[k] or k == "storage"}
        study = replace(self, parameters=stated)
        if models is not None:
            study = replace(study, models=split_list("models", models))
        if budget is not None:
            study = replace(study, budget=() if budget == "none" else parse_budget(budget.split(",")))
        if study.budget and all(row.refine for row in study.grid):
            raise InputError(
                f"budget={','.join(map(str, study.budget))}: the study {study.name} searches for the sparsity itself; "
                f"leave the budget out, or use the study locate"
            )
        check_effect(study, given)
        check_rows(study)
        return study


def check_effect(study: Study, given: Mapping[str, tuple[str, ...]]) -> None:
    """Raises InputError for an option that has no effect, because every row of the grid names its own value."""
    for name, value in given.items():
        if all(row.values.get(name, value) != value for row in study.grid):
            raise InputError(
                f"{name}={','.join(value)}: it has no effect, because every row of the study {study.name} names its own "
                f"{name}; leave it out, or change the rows (--show prints them)"
            )


def check_rows(study: Study) -> None:
    """Raises InputError for values that exclude each other. The message names the row of the grid that holds them."""
    for i, row in enumerate(study.grid, 1):
        try:
            for values, _ in replace(study, grid=(row,)).combinations():
                check_searchable(Spec.parse(**values), row.refine)
        except InputError as e:
            where = f"study={study.name}: row {i} of its grid: " if len(study.grid) > 1 else ""
            raise InputError(f"{where}{e}") from e


def check_searchable(spec: Spec, refine: float | None) -> None:
    """Raises InputError for a ticket at whose place no sparsity can be searched, if `refine` asks for that."""
    if refine and spec.pattern != "unstructured":
        raise InputError(
            f"pattern={spec.pattern}: it has only one sparsity, so refine has nothing to search; leave refine "
            f"out, or give pattern=unstructured"
        )
    if refine and "perplexity" not in spec.measures:
        raise InputError(
            f"measure={spec.measure}: a search for a sparsity needs the ratio of perplexities; add perplexity, "
            f"or leave refine out"
        )


def plain_numbers(value: Any) -> Any:
    """Returns the value with each text that is a number as that number, also inside lists and mappings."""
    if isinstance(value, dict):
        return {key: plain_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain_numbers(inner) for inner in value]
    if re.fullmatch(r"\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"\d+\.\d+|\d+(\.\d+)?e-\d+", value) else value


def presets() -> list[str]:
    """Returns the names of lottery's own studies."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_study(name: str) -> Study:
    """Returns a preset by its name, or the study of a YAML file by its path.

    Raises InputError, which lists similar names, if there is none, and for a key or value that a study cannot have.
    """
    path = PRESETS / f"{name}.yaml" if name in presets() else Path(name).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        raise InputError(f"study={name}: {did_you_mean(name, presets())}; or give a YAML file (see --show)")
    found = read_yaml(path, f"study={name}")
    if not isinstance(found, dict):
        raise InputError(f"study={name}: it holds no keys; `lottery study locate --show` prints one to begin with")
    return study_from_record(found, f"study={name}", path.stem)


def study_from_record(found: Mapping[str, Any], where: str, name: str) -> Study:
    """Returns the study that a mapping describes.

    `name` is used if the mapping has no name; `where` begins the messages. Raises InputError for a wrong key or value.
    """
    for key in found:
        if key not in (*KEYS, *TICKET_PARAMS, "refine"):
            raise InputError(
                f"{where}: unknown key {key!r}; {did_you_mean(str(key), (*KEYS, *TICKET_PARAMS, 'refine'))}"
            )
    name = str(found.get("name", name))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", name):
        raise InputError(
            f"{where}: name={name}: give at most 61 letters, digits, -, _ and dots, and begin with a letter or a digit"
        )
    rows = found.get("grid", [{}])
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{where}: grid holds no list of rows; give rows like `- {{target: [all, mlp], sparsity: 0.5}}`"
        )
    top = {key: check_values(where, key, found[key]) for key in TICKET_PARAMS if key in found}
    refine = found.get("refine")
    study = Study(
        name=name,
        question=str(found.get("question", "")),
        models=split_list("models", found.get("models", "builtin"), where),
        grid=tuple(read_row(row, where, refine) for row in rows),
        parameters=top,
        budget=parse_budget(found["budget"], where) if found.get("budget", "none") != "none" else (),
    )
    return study.with_options(None, None, {})


def read_row(row: Mapping[str, Any], where: str, refine: Any) -> GridRow:
    """Returns a row of the grid; `refine` is used if the row has none. Raises InputError for a wrong key or value."""
    for key in row:
        if key not in (*TICKET_PARAMS, "refine"):
            raise InputError(
                f"{where}: unknown key {key!r} in grid; {did_you_mean(str(key), (*TICKET_PARAMS, 'refine'))}"
            )
    refine = row.get("refine", refine)
    if refine is not None:
        refine = float_range(0.001, 0.5)["parse"](f"{where}: refine", refine)
    return GridRow({key: check_values(where, key, value) for key, value in row.items() if key != "refine"}, refine)


def check_values(where: str, name: str, given: Any) -> tuple[str, ...]:
    """Returns the values of a parameter as its own check writes them, so that 0.50 is 0.5.

    `given` is one value or a list. Raises InputError for a value that the parameter does not take.
    """
    if name not in TICKET_PARAMS:
        raise InputError(f"{where}: unknown key {name!r}; {did_you_mean(name, TICKET_PARAMS)}")
    values = given if isinstance(given, list) else [given]
    if not values or not all(isinstance(value, str) for value in values):
        raise InputError(f"{where}: {name} holds no plain value; give one value, or a list of values")
    parse = next(f for f in fields(Spec) if f.name == name).metadata["parse"]
    try:
        return tuple(dict.fromkeys(str(parse(name, value)) for value in values))
    except InputError as e:
        raise InputError(f"{where}: {e}" if where != "parameters" else str(e)) from e


def split_list(name: str, given: Any, where: str = "") -> tuple[str, ...]:
    """Returns the words of a list or of a text with commas. Raises InputError if there is none."""
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, list) or not all(isinstance(part, str) and part.strip() for part in parts) or not parts:
        raise InputError(f"{where}{': ' if where else ''}{name}={given}: give one, or several separated by commas")
    return tuple(dict.fromkeys(part.strip() for part in parts))


def parse_budget(given: Any, where: str = "") -> tuple[float, ...]:
    """Returns the budgets, each a share of all parameters between 0 and 1. Raises InputError for anything else."""
    parts = given if isinstance(given, list) else str(given).split(",")
    parse = float_range(0, 1)["parse"]
    found = tuple(parse(f"{where}{': ' if where else ''}budget", part) for part in parts)
    if not all(found):
        raise InputError(
            f"{where}{': ' if where else ''}budget=0: nothing would be removed; give a share above 0, or none"
        )
    return found

"""This file plans a study: it lists every ticket, dense baseline and search, each with the name of its part."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lottery.errors import InputError
from lottery.files.reading import read_json
from lottery.jobs.resolve import open_model, resolve
from lottery.measuring.baseline import REUSED_MEASURES
from lottery.measuring.cache import Cache
from lottery.models.checkpoint import Base
from lottery.models.sources import local_folder
from lottery.models.texts import WORDS
from lottery.parameters import owl_numbers
from lottery.pruning.calibration import SETTINGS
from lottery.pruning.plan import UnfitError, plan_ticket
from lottery.pruning.tensors import tensor_info
from lottery.spec import METHODS, Spec
from lottery.study.design import EACH_LAYER, GridRow, Study, study_from_record
from lottery.study.texts import canonical, check_flattery
from lottery.study.titles import tell_apart
from lottery.ticket.stored import StoredTicket

BASELINE_PARAMS = ("model", "dataset", "window", "limit", "dtype", "runtime", "device", "measure")


@dataclass(frozen=True)
class Part:
    """One ticket of a study, one dense baseline, or one search for a sparsity. One task of a cluster makes one part."""

    part: str  # ticket-7, dense-0, refine-0
    title: str
    base: str
    spec: Spec
    budget: float | None = None
    width: float | None = None  # only a search has it: it ends when the sparsity is known to this
    points: tuple[str, ...] = ()  # only a search has them: the parts that are the tickets of its grid

    @property
    def base_id(self) -> str:
        """The base's own name. `base` also holds the model if two bases have the same name."""
        return self.base.removesuffix(f" ({self.spec.model})")

    def json(self) -> dict[str, Any]:
        plain = {k: v for k, v in self.__dict__.items() if k not in ("spec", "points")}
        return plain | {"model": self.spec.model, "params": self.spec.params(), "points": list(self.points)}


@dataclass(frozen=True)
class Plan:
    """All parts of a study, and what was left out of it."""

    study: Study
    tickets: list[Part]
    baselines: list[Part] = field(default_factory=list)
    refined: list[Part] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    disk_bytes: int = 0  # the size of all tickets, without those that a search makes
    run: str | None = None  # the id of the study's run in MLflow; None before it is known
    fresh: bool = False  # if true, tickets of earlier runs of this study do not count

    @property
    def id(self) -> str:
        return self.study.id

    @property
    def title(self) -> str:
        bases = list(dict.fromkeys(part.base for part in self.tickets))
        return f"{self.study.name} {', '.join(bases) if len(bases) < 3 else f'{len(bases)} models'}"

    @property
    def parts(self) -> list[Part]:
        """All parts in the order of the work: model by model, the dense baselines first."""
        every = (*self.baselines, *self.tickets, *self.refined)
        return [part for model in self.study.models for part in every if part.spec.model == model]

    def json(self) -> dict[str, Any]:
        parts = {name: [part.json() for part in getattr(self, name)] for name in ("tickets", "baselines", "refined")}
        return {
            "study_id": self.id,
            "name": self.study.name,
            "question": self.study.question,
            "study": self.study.record(),
            **parts,
            "left_out": self.left_out,
            "disk_bytes": self.disk_bytes,
            "run": self.run,
            "fresh": self.fresh,
        }


def read_plan(path: Path) -> Plan:
    """Returns the plan in a file that holds `Plan.json`. Raises InputError for any other file."""
    found = read_json(path)
    try:
        parts = {
            name: [
                Part(
                    **{k: v for k, v in part.items() if k not in ("model", "params", "points")},
                    spec=Spec.parse(**part["params"]),
                    points=tuple(part["points"]),
                )
                for part in found[name]
            ]
            for name in ("tickets", "baselines", "refined")
        }
        for part in itertools.chain(*parts.values()):
            if not re.fullmatch(r"(ticket|dense|refine)-\d+", part.part):
                raise KeyError(part.part)
        study = study_from_record(found["study"], f"study={path}", "study")
        plan = Plan(
            study, **parts, left_out=found["left_out"], disk_bytes=found["disk_bytes"], run=found["run"],
            fresh=found["fresh"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise InputError(
            f"study={path}: not a plan that lottery wrote ({e}); give the study's name or YAML file"
        ) from e
    if plan.id != found["study_id"]:
        raise InputError(f"study={path}: its study was changed after it was planned; submit the YAML file again")
    return plan


class TooFewError(UnfitError):
    """A target has fewer weights than a budget would remove."""


def make_plan(study: Study, cache: Cache) -> Plan:
    """Returns a plan with every ticket of a study, each once.

    A target that one of several models does not have, or that is smaller than the budget, is left out, with the reason,
    and so is a ticket calibrated with the embedded text that its model is measured on. A target that no model has is an
    error. The weights are not needed yet, because config.json is enough. Raises
    InputError, and MachineError if a hub fails.
    """
    study = with_absolute_paths(study)
    found: dict[Spec, Part] = {}  # by `canonical` spec
    searches: dict[Spec, Search] = {}
    left_out: list[dict[str, str]] = []
    unfit: dict[str, dict[str, InputError]] = {}  # target -> model -> why the model does not have it
    disk_bytes = 0
    sources = {
        model: cache.get_or_compute(("source", model, False, True), partial(open_model, model, False, True))[0]
        for model in study.models
    }
    bases = display_names(sources)
    for model, row, spec, budget in every_spec(study, sources):
        source, base = sources[model], bases[model]
        try:
            if budget is not None:
                spec = spec_for_budget(spec, source, budget, cache)
            _, chosen, _ = resolve(spec, cache, config_only=True)
            base_id = source.base_record["id"]
            check_flattery(spec, base_id)
        except InputError as e:
            if not isinstance(e, UnfitError):
                unfit.setdefault(spec.target, {})[model] = e
            left = {"model": model, "target": spec.target, "reason": str(e)}
            left_out += [left] if left not in left_out else []
            continue
        key = canonical(spec, base_id)
        if row.refine:
            add_to_search(searches, key, spec, base, row.refine)
        if key not in found:
            disk_bytes += plan_ticket(source, spec, chosen, with_ticket_id=False)["disk_bytes_after"]
            found[key] = Part(f"ticket-{len(found)}", spec.title, base, spec, budget)
    for of_models in unfit.values():
        if len(of_models) == len(study.models):
            raise next(iter(of_models.values()))
    if not found:
        raise InputError(f"study={study.name}: none of its tickets can be made: {left_out[0]['reason']}")
    tickets = with_titles(list(found.values()))
    return Plan(study, tickets, list(baselines_of(tickets)), search_parts(searches, found), left_out, disk_bytes)


def with_titles(tickets: list[Part]) -> list[Part]:
    """Returns the parts with titles that tell the tickets of one base apart."""
    titles = tell_apart([(part.base, part.title, part.spec.params()) for part in tickets])
    return [replace(part, title=title) for part, title in zip(tickets, titles, strict=True)]


def every_spec(
    study: Study, sources: Mapping[str, Base | StoredTicket]
) -> Iterator[tuple[str, GridRow, Spec, float | None]]:
    """Yields (model, row of the grid, spec, budget) for all tickets that a study names, model by model."""
    for model, source in sources.items():
        for values, row in study.combinations():
            for spec, budget in specs_of(study, model, source, values, row):
                yield model, row, spec, budget


@dataclass
class Search:
    """A search: specs that differ only in their sparsity, between which further sparsities are tried."""

    spec: Spec
    base: str
    width: float
    grid: list[Spec]  # the `canonical` specs of its tickets


def add_to_search(searches: dict[Spec, Search], key: Spec, spec: Spec, base: str, width: float) -> None:
    """Adds a spec to the search that it belongs to; the smallest `width` of all its specs counts. `key`: the `canonical`
    spec."""
    search = searches.setdefault(replace(key, sparsity=0.0), Search(replace(spec, sparsity=0.0), base, width, []))
    search.width = min(search.width, width)
    search.grid.append(key)


def search_parts(searches: Mapping[Spec, Search], tickets: Mapping[Spec, Part]) -> list[Part]:
    """Returns a part for each search. `tickets` holds the parts of all specs of its grid, by `canonical` spec."""
    refined = []
    for i, search in enumerate(searches.values()):
        points = tuple(dict.fromkeys(tickets[spec].part for spec in search.grid))
        title = search.spec.title.replace(" 0%", "")
        refined.append(Part(f"refine-{i}", title, search.base, search.spec, None, search.width, points))
    return refined


def with_absolute_paths(study: Study) -> Study:
    """Returns the study with absolute paths. A relative path means other files, so another study, in another folder."""

    def absolute(name: str, value: str) -> str:
        path = Path(value).expanduser()
        if value in ("builtin", "auto", *WORDS["dataset"], *WORDS["calibration"]):
            return value
        here = (name in ("dataset", "calibration", "allocation") and path.is_file()) or (
            name == "model" and local_folder(value) is not None
        )
        return os.path.abspath(path) if here else value

    def all_absolute(values: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {name: tuple(absolute(name, value) for value in given) for name, given in values.items()}

    return replace(
        study,
        models=tuple(dict.fromkeys(absolute("model", model) for model in study.models)),
        parameters=all_absolute(study.parameters),
        grid=tuple(replace(row, values=all_absolute(row.values)) for row in study.grid),
    )


def display_names(sources: Mapping[str, Base | StoredTicket]) -> dict[str, str]:
    """Returns model -> the name of its base, followed by the model if two bases have the same name."""
    bases = {model: s.base_record["id"] if isinstance(s, StoredTicket) else s.id for model, s in sources.items()}
    alike = {base for base in bases.values() if list(bases.values()).count(base) > 1}
    return {model: f"{base} ({model})" if base in alike else base for model, base in bases.items()}


def specs_of(
    study: Study, model: str, source: Base | StoredTicket, values: Mapping[str, str], row: GridRow
) -> Iterator[tuple[Spec, float | None]]:
    """Yields (spec, budget) for one combination of a row and one model.

    There is a spec for each layer that `@*` stands for, and for each budget. Tickets of a hub's model that keep its values
    are stored as masks unless the study names a storage. A method that looks at no data leaves the parameters of the
    calibration alone, which are for other methods of the study.
    """
    target = values.get("target", Spec().target)
    layers = 1 + max((p.layer for p in source.places if p.layer is not None), default=0)
    targets = [target.replace(EACH_LAYER, f"@{i}") for i in range(layers)] if EACH_LAYER in target else [target]
    hub = isinstance(source, Base) and source.revision is not None
    method = METHODS[values.get("method", Spec().method)]
    looks = method.calibrated or owl_numbers(values.get("allocation", "uniform"))
    values = values if looks else {name: v for name, v in values.items() if name not in SETTINGS}
    light = {"storage": "mask"} if hub and not method.updates and values.get("quantize", "none") == "none" else {}
    for each in targets:
        spec = Spec.parse(**{**light, **values, "target": each, "model": model})
        if study.budget and not row.refine:
            yield from ((spec, budget) for budget in study.budget)
        else:
            yield spec, None


def spec_for_budget(spec: Spec, source: Base | StoredTicket, budget: float, cache: Cache) -> Spec:
    """Returns the spec with the sparsity that removes the share `budget` of all the model's parameters.

    Rounding changes the number by at most half a weight in each tensor. Raises TooFewError if the target has fewer
    weights than that.
    """
    _, chosen, _ = resolve(spec, cache, config_only=True)
    total = sum(source.info(p.name).numel for p in source.places)
    targeted = sum(tensor_info(source, p).numel for p in chosen)
    if not (removed := round(budget * total)):
        raise InputError(f"budget={budget:g}: that is less than one of its {total:,} weights; give a larger share")
    if removed > targeted:
        raise TooFewError(
            f"{spec.target} has {targeted:,} weights, {targeted / total:.2%} of the model: fewer than the budget of "
            f"{budget:.2%}"
        )
    return Spec.parse(**spec.params() | {"sparsity": removed / targeted})


def baseline_key(spec: Spec) -> tuple[Any, ...]:
    """Returns the values that two tickets share if one dense measurement serves both."""
    return tuple(getattr(spec, name) for name in BASELINE_PARAMS)


def baselines_of(tickets: list[Part]) -> Iterator[Part]:
    """Yields the dense baselines that these tickets are compared with, one for each protocol.

    A ticket with only its speed or memory measured needs none: its own job measures the dense model too.
    """
    seen: dict[tuple[Any, ...], Part] = {}
    for ticket in tickets:
        key = baseline_key(ticket.spec)
        if REUSED_MEASURES & set(ticket.spec.measures) and key not in seen:
            given = {name: value for name, value in ticket.spec.params().items() if name in BASELINE_PARAMS}
            spec = Spec.parse(**given, sparsity=0)
            seen[key] = Part(f"dense-{len(seen)}", "dense", ticket.base, spec)
            yield seen[key]

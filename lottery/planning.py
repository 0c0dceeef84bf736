"""What a study means on this machine: the tickets that it asks for, one by one, each with the name of its part."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lottery.checkpoint import Base, read_json
from lottery.choice import open_choice, open_source
from lottery.design import EACH_LAYER, Row, Study, from_record
from lottery.pruning import info_of, planned
from lottery.shared import Shared
from lottery.spec import InputError, Spec
from lottery.ticket import Stored

OF_BASELINE = ("model", "dataset", "window", "limit", "dtype", "runtime", "device", "measure")


@dataclass(frozen=True)
class Part:
    """One ticket of a study, one dense baseline, or one search for a sparsity: what one task of a cluster does."""

    part: str  # ticket-7, dense-0, refine-0
    title: str
    base: str
    spec: Spec
    budget: float | None = None
    width: float | None = None  # of a search: how well the sparsity is to be known
    points: tuple[str, ...] = ()  # of a search: the tickets of its grid, by their part

    def json(self) -> dict[str, Any]:
        plain = {k: v for k, v in self.__dict__.items() if k not in ("spec", "points")}
        return plain | {"model": self.spec.model, "params": self.spec.params(), "points": list(self.points)}


@dataclass(frozen=True)
class Plan:
    study: Study
    tickets: list[Part]
    baselines: list[Part] = field(default_factory=list)
    refined: list[Part] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    disk_bytes: int = 0  # of all tickets, without those that a search makes
    run: str | None = None  # the study's run, where tasks of a cluster share it
    fresh: bool = False  # tickets of other runs of this study do not count

    @property
    def id(self) -> str:
        return self.study.id

    @property
    def title(self) -> str:
        bases = list(dict.fromkeys(part.base for part in self.tickets))
        return f"{self.study.name} {', '.join(bases) if len(bases) < 3 else f'{len(bases)} models'}"

    @property
    def parts(self) -> list[Part]:
        """All of them in the order of the work: model by model, the dense baseline first."""
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
    """What `Plan.json` wrote. Raises InputError for another file."""
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
        study = from_record(found["study"], f"study={path}", "study")
        plan = Plan(
            study, **parts, left_out=found["left_out"], disk_bytes=found["disk_bytes"], run=found["run"],
            fresh=found["fresh"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as e:
        raise InputError(f"study={path}: no plan that lottery wrote ({e}); give the study's name or YAML file") from e
    if plan.id != found["study_id"]:
        raise InputError(f"study={path}: its study was changed after it was planned; submit the YAML file again")
    return plan


def make_plan(study: Study, shared: Shared) -> Plan:
    """Every ticket of a study, each once. A target that one of several models does not have, or that is smaller than the
    budget, is left out, with the reason; what no model has is an error.

    Weights are not needed yet: config.json is enough. Raises InputError, and MachineError where a hub fails.
    """
    found: dict[Spec, Part] = {}
    searches: dict[Spec, tuple[Row, list[Spec], str]] = {}
    left_out: list[dict[str, str]] = []
    disk_bytes = 0
    for model in study.models:
        source, _ = shared.once(("source", model, False, True), partial(open_source, model, False, True))
        base = source.origin["id"] if isinstance(source, Stored) else source.id
        for values, row in study.combinations():
            for spec, budget in specs_of(study, model, source, values, row):
                try:
                    if budget is not None:
                        spec = at_budget(spec, source, budget, shared)
                    _, chosen, _ = open_choice(spec, shared, outline=True)
                except InputError as e:
                    if budget is None and len(study.models) == 1:
                        raise
                    left = {"model": model, "target": spec.target, "reason": str(e)}
                    left_out += [left] if left not in left_out else []
                    continue
                if row.refine:
                    group = replace(spec, sparsity=0.0)
                    searches.setdefault(group, (row, [], base))[1].append(spec)
                if spec not in found:
                    disk_bytes += planned(source, spec, chosen, identified=False)["disk_bytes_after"]
                    found[spec] = Part(f"ticket-{len(found)}", spec.title, base, spec, budget)
    if not found:
        raise InputError(f"study={study.name}: no ticket is left of it: {left_out[0]['reason']}")
    refined = [
        Part(
            f"refine-{i}",
            group.title.replace(" 0%", ""),
            base,
            group,
            None,
            row.refine,
            tuple(found[s].part for s in grid),
        )
        for i, (group, (row, grid, base)) in enumerate(searches.items())
    ]
    tickets = list(found.values())
    return Plan(study, tickets, list(baselines_of(tickets)), refined, left_out, disk_bytes)


def specs_of(
    study: Study, model: str, source: Base | Stored, values: Mapping[str, str], row: Row
) -> Iterator[tuple[Spec, float | None]]:
    """What one combination of a row means for one model: a spec for each layer that `@*` stands for, and for each budget."""
    target = values.get("target", Spec().target)
    layers = 1 + max((p.layer for p in source.places if p.layer is not None), default=0)
    targets = [target.replace(EACH_LAYER, f"@{i}") for i in range(layers)] if EACH_LAYER in target else [target]
    hub = isinstance(source, Base) and source.revision is not None
    light = {"storage": "mask"} if hub and values.get("quantize", "none") == "none" else {}
    for each in targets:
        spec = Spec.parse(**{**light, **values, "target": each, "model": model})
        if study.budget and not row.refine:
            yield from ((spec, budget) for budget in study.budget)
        else:
            yield spec, None


def at_budget(spec: Spec, source: Base | Stored, budget: float, shared: Shared) -> Spec:
    """The same target at the sparsity that removes `budget` of all the model's parameters. Raises InputError where it has
    fewer weights."""
    _, chosen, _ = open_choice(spec, shared, outline=True)
    total = sum(source.info(p.name).numel for p in source.places)
    targeted = sum(info_of(source, p).numel for p in chosen)
    if (removed := round(budget * total)) > targeted:
        raise InputError(
            f"{spec.target} has {targeted:,} weights, {targeted / total:.2%} of the model: fewer than the budget of {budget:.2%}"
        )
    return Spec.parse(**spec.params() | {"sparsity": removed / targeted})


def baselines_of(tickets: list[Part]) -> Iterator[Part]:
    """The dense models that these tickets are compared with, one for each protocol."""
    seen: dict[tuple[Any, ...], Part] = {}
    for ticket in tickets:
        key = tuple(getattr(ticket.spec, name) for name in OF_BASELINE)
        if ticket.spec.measures and key not in seen:
            given = {name: value for name, value in ticket.spec.params().items() if name in OF_BASELINE}
            spec = Spec.parse(**given, sparsity=0)
            seen[key] = Part(f"dense-{len(seen)}", "dense", ticket.base, spec)
            yield seen[key]


def crossing(points: Mapping[float, float], limit: float) -> tuple[float, float]:
    """(below, above): between which two sparsities the ratio first exceeds `limit`. `points`: sparsity -> ratio.

    Where all do, below is 0; where none does, above is 1, since a model without weights says nothing.
    """
    below = 0.0
    for sparsity in sorted(points):
        if not points[sparsity] <= limit:  # an overflow (NaN) is above
            return below, sparsity
        below = sparsity
    return below, 1.0


def halfway(below: float, above: float, width: float) -> float | None:
    """The sparsity to try next, a multiple of `width` where one lies between; None where it is known well enough."""
    if above - below <= width * (1 + 1e-9):
        return None
    middle = round(round((below + above) / 2 / width) * width, 10)
    return middle if below < middle < above else (below + above) / 2

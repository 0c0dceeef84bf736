"""This file lists the registered tickets: one row for each version, with the figures of its ticket."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException
from rich import box
from rich.table import Table

from lottery.errors import InputError
from lottery.measuring.console import megabytes, render
from lottery.measuring.numbers import format_interval
from lottery.measuring.verdict import describe_verdict
from lottery.registry.logged_models import logged_model_id
from lottery.registry.protocols import describe_protocol
from lottery.registry.store import Client, every_page
from lottery.registry.verdicts import JUDGED_BY, VERDICT
from lottery.spec import short_base

MEASURED_TAGS = (*VERDICT, "protocol", "arithmetic")
COLUMNS = ("target", "sparsity", "method", "scope", "allocation", "pattern", "quantize", "storage")


@dataclass(frozen=True)
class VersionRow:
    """One registered version, with the figures and the verdict of one run.

    That run is the one whose verdict the version has. A version of an earlier lottery, or one that was registered
    without figures, has those of the first run that measured it. The figures of other runs are in MLflow.
    """

    uri: str
    model_id: str
    ticket: str
    base: str
    run_id: str
    protocol: str
    params: dict[str, str]
    metrics: dict[str, float]
    dataset: str | None
    arithmetic: str
    winner: str | None
    coherent: str | None
    outcome: str | None
    aliases: tuple[str, ...]


def search_versions(client: Client, filter: str, name: str | None, order: str) -> list[VersionRow]:
    """Returns the registered tickets whose logged model fulfils `filter`, of the registered model `name` or of all.

    `filter` is in MLflow's filter language: `metrics.perplexity_ratio < 1.1 and params.target = 'late'`. `order` is
    version, sparsity, perplexity, ratio or size. Raises InputError for a filter that MLflow does not understand, and
    for a name that is not registered.
    """
    aliases: dict[tuple[str, str], list[str]] = defaultdict(list)
    registered = every_page(partial(client.search_registered_models))
    if name is not None and name not in [m.name for m in registered]:
        raise InputError(
            f"name={name}: no such registered model; registered are: {', '.join(m.name for m in registered) or 'none'}"
        )
    for model in registered:
        for alias, version in model.aliases.items():
            aliases[model.name, str(version)].append(alias)
    query = f"name = '{name}'" if name else None
    versions = defaultdict(list)
    for version in every_page(partial(client.search_model_versions, query)):
        if (model_id := logged_model_id(version.source)) and "ticket" in version.tags:
            versions[model_id].append(version)
    experiments = [e.experiment_id for e in every_page(partial(client.search_experiments))]
    try:
        models = every_page(partial(client.search_logged_models, experiments, filter or None))
    except MlflowException as e:
        reason = " ".join(str(e).split())[:300]
        if "has no attribute" in reason:
            reason = "a name of it is not known; write params.target = 'late', metrics.perplexity_ratio < 1.1 or tags.winner = 'yes'"
        raise InputError(f"filter={filter}: {reason}") from e
    found = [
        version_row(client, version, model, tuple(sorted(aliases[version.name, str(version.version)])))
        for model in models
        for version in versions[model.model_id]
    ]
    return sorted(found, key=partial(sort_key, order))


def sort_key(order: str, row: VersionRow) -> tuple[Any, ...]:
    """Returns the key that sorts a row by `order`. Rows without that figure come last."""
    name, version = row.uri.removeprefix("models:/").rsplit("/", 1)
    figure = {
        "sparsity": "sparsity_model",
        "perplexity": "perplexity",
        "ratio": "perplexity_ratio",
        "size": "disk_bytes",
    }
    value = row.metrics.get(figure.get(order, ""))
    return (value is None, value if value is not None else 0.0, name, int(version))


def version_row(client: Client, version: Any, model: Any, aliases: tuple[str, ...]) -> VersionRow:
    """Returns the row of a model version, whose logged model is `model` (both are MLflow entities)."""
    metrics = sorted(model.metrics or [], key=lambda m: m.timestamp)
    tags, judged_by = version.tags, version.tags.get(JUDGED_BY)
    if judged_by not in {m.run_id for m in metrics}:  # `mlflow gc` has removed that run; a later measurement counts
        judged_by = None
    measured = [m for m in metrics if m.key == "perplexity"]
    first = next((m for m in measured if m.run_id == judged_by), None if judged_by else next(iter(measured), None))
    run_id = judged_by or (first.run_id if first else model.source_run_id)
    tagged_by = version.tags.get(JUDGED_BY) or ("protocol" in version.tags and model.source_run_id)
    if first and tagged_by != run_id:
        tags = {k: v for k, v in tags.items() if k not in MEASURED_TAGS} | read_measured_tags(client, run_id)
    return VersionRow(
        uri=f"models:/{version.name}/{version.version}",
        model_id=model.model_id,
        ticket=tags["ticket"],
        base=tags.get("base", ""),
        run_id=run_id,
        protocol=tags.get("protocol") or (first.dataset_digest if first else ""),
        params={name: model.params[name] for name in COLUMNS if name in model.params},
        metrics={m.key: m.value for m in metrics if m.run_id == run_id},
        dataset=first.dataset_name if first else None,
        arithmetic=tags.get("arithmetic", ""),
        winner=describe_verdict(tags) or None,
        coherent=tags.get("coherent"),
        outcome=tags.get("outcome"),
        aliases=aliases,
    )


def read_measured_tags(client: Client, run_id: str) -> dict[str, str]:
    """Returns the tags in which a run says how it measured and what the verdict is."""
    with contextlib.suppress(MlflowException):  # somebody has deleted that run
        tags = client.get_run(run_id).data.tags
        return {name: tags[name] for name in MEASURED_TAGS if name in tags}
    return {}


def describe_protocols(client: Client, rows: Sequence[VersionRow]) -> dict[tuple[str, str], str]:
    """Returns (base, protocol) -> the protocol in a line for people, read from one run of each."""
    lines = {}
    for key, members in group_rows(rows).items():
        if key[1]:
            lines[key] = members[0].dataset or ""
            with contextlib.suppress(MlflowException):  # somebody has deleted that run
                lines[key] = describe_protocol(client.get_run(members[0].run_id)) or lines[key]
    return lines


def group_rows(rows: Sequence[VersionRow]) -> dict[tuple[str, str], list[VersionRow]]:
    """Returns (base, protocol) -> the rows in their order, by the name of the base; those without figures come last."""
    groups: dict[tuple[str, str], list[VersionRow]] = defaultdict(list)
    for row in rows:
        groups[row.base, row.protocol].append(row)
    return {
        key: groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1], groups[key][0].dataset or ""))
    }


def list_tables(rows: Sequence[VersionRow], protocols: Mapping[tuple[str, str], str]) -> str:
    """Returns a table for each base and protocol, since perplexities of two do not compare, with one line for each version.

    `protocols` is what `describe_protocols` returns. A column that holds only a usual value (`usual`) is left out.
    """
    if not rows:
        return "no registered ticket matches"
    columns = shown_columns(rows)
    parts = []
    for (base, protocol), members in group_rows(rows).items():
        measured = f"protocol {protocol}: {protocols[base, protocol]}" if protocol else "not measured"
        table = Table(box=box.MARKDOWN)
        for name in columns:
            numeric = name in ("sparsity", "perplexity [95%]", "ratio to dense [95%]", "file MB")
            table.add_column(name, justify="right" if numeric else "left")
        for row in members:
            table.add_row(*(of(row) for of in columns.values()))
        parts.append(f"{base}, {measured}\n{render(table).strip()}")
    return "\n\n".join(parts)


def shown_columns(rows: Sequence[VersionRow]) -> dict[str, Callable[[VersionRow], str]]:
    """Returns the columns of the tables: name -> the cell of a row."""
    several = len({r.arithmetic for r in rows} - {""}) > 1
    columns: dict[str, Callable[[VersionRow], str]] = {
        "ticket": lambda r: r.uri.removeprefix("models:/"),
        "target": lambda r: r.params.get("target", ""),
        "sparsity": lambda r: f"{100 * float(r.params['sparsity']):g}%" if "sparsity" in r.params else "",
        **{name: column(name) for name in ("method", "scope", "allocation", "pattern", "quantize", "storage")},
        "perplexity [95%]": lambda r: format_interval(r.metrics, "perplexity", 2) or r.outcome or "",
        "ratio to dense [95%]": lambda r: format_interval(r.metrics, "perplexity_ratio", 4),
        "arithmetic": lambda r: r.arithmetic if several else "",
        "file MB": lambda r: megabytes(r.metrics.get("disk_bytes")),
        "winner": lambda r: r.winner or "",
        "coherent": lambda r: r.coherent or "",
        "aliases": lambda r: ", ".join(r.aliases),
    }
    usual = {
        "method": "magnitude",
        "scope": "layer",
        "allocation": "uniform",
        "pattern": "unstructured",
        "quantize": "none",
        "storage": "packed",
    }
    return {n: of for n, of in columns.items() if n == "winner" or {of(r) for r in rows} - {"", usual.get(n, "")}}


def column(name: str) -> Callable[[VersionRow], str]:
    return lambda row: short_base(row.params.get(name, ""))  # of an allocation's file its name

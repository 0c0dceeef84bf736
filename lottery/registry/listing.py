"""What is registered: one row a version, with the figures of its ticket. MLflow alone."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException
from rich import box
from rich.table import Table

from lottery.errors import InputError
from lottery.measuring.console import format_interval, megabytes, render
from lottery.registry.logged_models import logged_model_id
from lottery.registry.store import Client, every_page
from lottery.registry.verdicts import JUDGED_BY

ORDERS = ("version", "sparsity", "perplexity", "ratio", "size")
COLUMNS = ("target", "sparsity", "method", "scope", "pattern", "quantize", "storage")


@dataclass(frozen=True)
class VersionRow:
    """One version: what it is, and the figures and the verdict of one run: the one that judged it, else (a version of
    before, or one that none judged) the first that measured it. What others measured is in MLflow."""

    uri: str
    model_id: str
    ticket: str
    base: str
    params: dict[str, str]
    metrics: dict[str, float]
    dataset: str | None
    arithmetic: str
    winner: str | None
    coherent: str | None
    outcome: str | None
    aliases: tuple[str, ...]


def search_versions(client: Client, filter: str, name: str | None, order: str) -> list[VersionRow]:
    """The registered tickets whose logged model fulfils `filter` (in MLflow's words: `metrics.perplexity_ratio < 1.1 and
    params.target = 'late'`), of the registered model `name` or of all.

    Raises InputError for a filter that MLflow does not understand, or a name that is not there.
    """
    aliases: dict[tuple[str, str], list[str]] = defaultdict(list)
    registered = every_page(partial(client.search_registered_models))
    if name is not None and name not in [m.name for m in registered]:
        raise InputError(
            f"name={name}: no such registered model; there are: {', '.join(m.name for m in registered) or 'none'}"
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
        raise InputError(f"filter={filter}: {' '.join(str(e).split())[:300]}") from e
    found = [
        version_row(version, model, tuple(sorted(aliases[version.name, str(version.version)])))
        for model in models
        for version in versions[model.model_id]
    ]
    return sorted(found, key=partial(sort_key, order))


def sort_key(order: str, row: VersionRow) -> tuple[Any, ...]:
    """Where a row stands; those without the figure last."""
    name, version = row.uri.removeprefix("models:/").rsplit("/", 1)
    figure = {
        "sparsity": "sparsity_model",
        "perplexity": "perplexity",
        "ratio": "perplexity_ratio",
        "size": "disk_bytes",
    }
    value = row.metrics.get(figure.get(order, ""))
    return (value is None, value if value is not None else 0.0, name, int(version))


def version_row(version: Any, model: Any, aliases: tuple[str, ...]) -> VersionRow:
    metrics = sorted(model.metrics or [], key=lambda m: m.timestamp)
    tags, judged_by = version.tags, version.tags.get(JUDGED_BY)
    measured = [m for m in metrics if m.key == "perplexity"]
    first = next((m for m in measured if m.run_id == judged_by), None if judged_by else next(iter(measured), None))
    run_id = judged_by or (first.run_id if first else model.source_run_id)
    return VersionRow(
        uri=f"models:/{version.name}/{version.version}",
        model_id=model.model_id,
        ticket=tags["ticket"],
        base=tags.get("base", ""),
        params={name: model.params[name] for name in COLUMNS if name in model.params},
        metrics={m.key: m.value for m in metrics if m.run_id == run_id},
        dataset=first.dataset_name if first else None,
        arithmetic=tags.get("arithmetic", ""),
        winner=tags.get("winner"),
        coherent=tags.get("coherent"),
        outcome=tags.get("outcome"),
        aliases=aliases,
    )


def list_table(rows: Sequence[VersionRow]) -> str:
    """One line a version. What is the same in all and unremarkable (the default method, ...) gets no column."""
    if not rows:
        return "no ticket is registered that fits"
    several = len({r.arithmetic for r in rows} - {""}) > 1
    columns: dict[str, Callable[[VersionRow], str]] = {
        "ticket": lambda r: r.uri.removeprefix("models:/"),
        "target": lambda r: r.params.get("target", ""),
        "sparsity": lambda r: f"{100 * float(r.params['sparsity']):g}%" if "sparsity" in r.params else "",
        **{name: column(name) for name in ("method", "scope", "pattern", "quantize", "storage")},
        "perplexity [95%]": lambda r: format_interval(r.metrics, "perplexity", 2) or r.outcome or "",
        "ratio to dense [95%]": lambda r: format_interval(r.metrics, "perplexity_ratio", 4),
        "on": lambda r: r.dataset or "",
        "arithmetic": lambda r: r.arithmetic if several else "",
        "file MB": lambda r: megabytes(r.metrics.get("disk_bytes")),
        "winner": lambda r: r.winner or "",
        "coherent": lambda r: r.coherent or "",
        "aliases": lambda r: ", ".join(r.aliases),
    }
    usual = {
        "method": "magnitude",
        "scope": "layer",
        "pattern": "unstructured",
        "quantize": "none",
        "storage": "packed",
    }
    table = Table(box=box.MARKDOWN)
    shown = {n: of for n, of in columns.items() if n == "winner" or {of(r) for r in rows} - {"", usual.get(n, "")}}
    for name in shown:
        numeric = name in ("sparsity", "perplexity [95%]", "ratio to dense [95%]", "file MB")
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(of(row) for of in shown.values()))
    return render(table)


def column(name: str) -> Callable[[VersionRow], str]:
    return lambda row: row.params.get(name, "")

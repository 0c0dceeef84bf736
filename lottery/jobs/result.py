"""Defines what a job returns, and the tags of its run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lottery.measuring.measurement import Measurement, ModelResult
from lottery.measuring.setup import Setup
from lottery.measuring.verdict import judge
from lottery.spec import Spec
from lottery.ticket.record import sparsities
from lottery.ticket.stored import StoredTicket


@dataclass(frozen=True)
class Ticket:
    """What `prune` and `evaluate` return: the fields of `--json`, and the whole measurement."""

    ticket: str
    path: str | None
    run_id: str
    model_uri: str | None
    metrics: dict[str, float]
    tags: dict[str, str]
    measurement: Measurement = field(repr=False)
    page: str | None = field(default=None, repr=False)  # the address of the run in MLflow's web pages

    @property
    def found(self) -> Measurement:
        """Returns the measurement, by the name that earlier versions gave it."""
        return self.measurement

    def json(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("measurement", "page")}


def identity_tags(kind: str, ticket: str, base: str, setup: Setup) -> dict[str, str]:
    """Returns the tags that say what a run measures, and how."""
    protocol = {"protocol": setup.protocol_id} if setup.measures else {}
    if setup.protocol:
        protocol["arithmetic"] = setup.protocol.arithmetic
    about = {"device": setup.device, "hardware": setup.hardware, "family": setup.family}
    return {"kind": kind, "ticket": ticket, "base": base, **about, **protocol}


def verdict_tags(measured: ModelResult, spec: Spec, setup: Setup) -> dict[str, str]:
    """Returns the tags that judge a ticket: `outcome`, `limited`, `winner` and `beats_control`, as far as known."""
    tags = {"outcome": measured.outcome} if measured.outcome else {}
    protocol, metrics = setup.protocol, measured.metrics
    if protocol is None:
        return tags
    if protocol.windows < protocol.all_windows:
        tags["limited"] = str(protocol.windows)
    # A single window gives a ratio without an interval.
    if "perplexity_ratio" in metrics:
        tags["winner"] = judge(protocol, metrics.get("perplexity_ratio_hi", math.inf) <= 1 + spec.tolerance)
    if "control_ratio" in metrics:
        tags["beats_control"] = judge(protocol, metrics.get("control_ratio_hi", math.inf) < 1, whole=False)
    return tags


def with_sizes(measured: ModelResult, stored: StoredTicket, more: Mapping[str, float]) -> ModelResult:
    """Returns the result with the ticket's sparsities and sizes, and `more` metrics."""
    sizes = {
        **sparsities(stored.record),
        "disk_bytes": stored.disk_bytes,
        "disk_ratio": stored.disk_bytes / stored.base_record["disk_bytes"],
        # of the base: an untied head counts once
        "parameters": sum(math.prod(e["shape"]) for e in stored.record["tensors"].values() if "copy_of" not in e),
    }
    errors = [entry["layer_error"] for entry in stored.entries.values() if "layer_error" in entry]
    error = {"layer_error": sum(errors) / len(errors)} if errors else {}
    return replace(measured, metrics={**measured.metrics, **sizes, **error, **more})

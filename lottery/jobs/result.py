"""Defines what a job returns, and the tags of its run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lottery.measuring.measurement import Measurement, ModelResult
from lottery.measuring.setup import Setup
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
    if setup.protocol and spec.limit != "none":
        tags["limited"] = str(setup.protocol.windows)
    if "perplexity_ratio_hi" in measured.metrics:
        wins = measured.metrics["perplexity_ratio_hi"] <= 1 + spec.tolerance and "limited" not in tags
        tags["winner"] = "yes" if wins else "no"
    if "control_ratio_hi" in measured.metrics:
        tags["beats_control"] = "yes" if measured.metrics["control_ratio_hi"] < 1 else "no"
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
    return replace(measured, metrics={**measured.metrics, **sizes, **more})

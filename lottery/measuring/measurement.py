"""Holds the result of one measurement: all that its MLflow run will hold. It stays on disk until the run has it."""

import json
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lottery.errors import InputError
from lottery.files.atomic import atomic_write
from lottery.files.reading import read_json
from lottery.measuring.protocol import EvalProtocol
from lottery.ticket.record import MEASUREMENTS

KINDS = ("ticket", "dense", "evaluation")


def new_id() -> str:
    """Returns a random id, so that two measurements of one ticket have different ids."""
    return uuid.uuid4().hex[:16]


@dataclass(frozen=True)
class Measurement:
    """The result of one measurement, of a ticket or of a dense base.

    Legend: N windows, C random controls.
    """

    kind: str
    ticket: str  # the ticket's id, or the id of a dense base
    name: str  # the name of the run
    title: str  # the title of its row in a table
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    run_tags: dict[str, str] = field(default_factory=dict)  # further tags, which only its run gets
    metrics: dict[str, float] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)  # the metrics of the dense base
    protocol: EvalProtocol | None = None
    nll_N: np.ndarray | None = None
    control_CN: np.ndarray | None = None
    samples: list[dict[str, str]] = field(default_factory=list)
    quantize: str = "none"  # the ticket's
    base: str | None = None  # where the dense base lay
    licence: str | None = None  # the base's
    store: str | None = None  # a hash of the tracking store in which its run began
    model_id: str | None = None  # for an evaluation, the logged model that was measured
    dense_run: "Measurement | None" = None  # the dense base's own, if it is new
    id: str = field(default_factory=new_id)
    time_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    def json(self) -> dict[str, Any]:
        """Returns what measurements.json holds. A window that overflowed is null."""
        plain = {k: v for k, v in self.__dict__.items() if k not in ("nll_N", "control_CN", "protocol", "dense_run")}
        return plain | {
            "protocol": self.protocol.record() if self.protocol else None,
            "nll_per_window": to_json_numbers(self.nll_N),
            "control_nll_per_window": to_json_numbers(self.control_CN),
            "dense_run": self.dense_run.json() if self.dense_run else None,
        }

    def save(self, folder: Path) -> None:
        """Writes measurements.json into `folder`."""
        content = json.dumps(self.json(), indent=1, sort_keys=True, allow_nan=False) + "\n"
        atomic_write(folder / MEASUREMENTS, content.encode())


def to_json_numbers(array: np.ndarray | None) -> Any:
    """Returns the numbers as lists for JSON, with None for a number that is not finite."""
    if array is None:
        return None
    if array.ndim > 1:
        return [to_json_numbers(row) for row in array]
    return [x if math.isfinite(x) else None for x in array.tolist()]


def from_json_numbers(found: Any) -> np.ndarray | None:
    return None if found is None else np.array(found, np.float64)  # null becomes NaN


def read_raw_measurements(folder: Path) -> dict[str, Any]:
    """Returns measurements.json unchecked: any version of lottery may have written it, and anybody edited it."""
    return read_json(folder / MEASUREMENTS) if (folder / MEASUREMENTS).is_file() else {}


def read_measurement(folder: Path) -> Measurement | None:
    """Returns the measurement in a folder's measurements.json, None if there is no such file.

    The file is not hashed, so anybody can have edited it. Raises InputError where it is not what `save` writes.
    """
    path = folder / MEASUREMENTS
    if not path.is_file():
        return None
    try:
        return from_json(read_json(path))
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise InputError(f"{path}: it is damaged or edited ({str(e) or type(e).__name__}); measure again") from e


def from_json(found: Mapping[str, Any]) -> Measurement:
    """Undoes `Measurement.json`. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    fields = dict(found)
    protocol, dense_run = fields.pop("protocol"), fields.pop("dense_run")
    nll, control = fields.pop("nll_per_window"), fields.pop("control_nll_per_window")
    result = Measurement(
        **fields,
        protocol=EvalProtocol(**{k: v for k, v in protocol.items() if k != "protocol"}) if protocol else None,
        nll_N=from_json_numbers(nll),
        control_CN=from_json_numbers(control),
        dense_run=from_json(dense_run) if dense_run else None,
    )
    check_fields(result)
    return result


def check_fields(result: Measurement) -> None:
    """Raises ValueError that names the first field of the wrong type or form."""
    for name, kind in (
        ("params", str),
        ("tags", str),
        ("run_tags", str),
        ("metrics", (int, float)),
        ("dense", (int, float)),
    ):
        held = getattr(result, name)
        if not isinstance(held, dict) or not all(isinstance(k, str) and isinstance(v, kind) for k, v in held.items()):
            raise ValueError(name)
    # Both ids become parts of paths.
    if not re.fullmatch("[0-9a-f]{12}", result.ticket) or not re.fullmatch("[0-9a-f]{16}", result.id):
        raise ValueError("ticket or id")
    texts = (result.name, result.title, result.quantize)
    maybe = (result.base, result.licence, result.store, result.model_id)
    if not all(isinstance(t, str) for t in texts) or not all(t is None or isinstance(t, str) for t in maybe):
        raise ValueError("name, title, quantize, base, licence, store or model_id")
    if result.kind not in KINDS or type(result.time_ms) is not int:
        raise ValueError("kind or time_ms")
    if result.protocol and not all(type(v) in (int, str) for v in asdict(result.protocol).values()):
        raise ValueError("protocol")
    if not isinstance(result.samples, list) or not all(
        isinstance(s, dict) and all(isinstance(text, str) for text in (*s, *s.values())) for s in result.samples
    ):
        raise ValueError("samples")


@dataclass(frozen=True)
class ModelResult:
    """The result of measuring one model. N windows; `outcome` is "overflow" where the perplexity is not finite."""

    metrics: dict[str, float] = field(default_factory=dict)
    nll_N: np.ndarray | None = None
    samples: list[dict[str, str]] = field(default_factory=list)
    outcome: str | None = None

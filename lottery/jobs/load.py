"""Loads a ticket as a model."""

from pathlib import Path
from typing import Any

from lottery.jobs.resolve import find_ticket
from lottery.models import architecture, devices
from lottery.runtime.load import load_model
from lottery.spec import Spec
from lottery.ticket.opening import open_ticket


def load(
    uri_or_path: str | Path, device: str = "auto", dtype: str = "auto", runtime: str = "dense", base: str = "auto"
) -> tuple[Any, Any]:
    """Loads a ticket (a folder, or models:/NAME/VERSION), and returns its model and tokenizer (None without one).

    Every hash is checked. `base` says where the dense base of a ticket of masks lies, if it was moved. Raises
    InputError where there is no such ticket, or where its files are not those that were measured.
    """
    spec = Spec.parse(device=device, dtype=dtype, runtime=runtime)
    stored = open_ticket(find_ticket(str(uri_or_path)).folder, base)
    where = devices.pick_device(spec.device)
    model = load_model(
        stored, stored.tensors, devices.pick_compute_dtype(spec.dtype, stored.dtype, where), where, spec.runtime
    )
    return model, architecture.read_tokenizer(stored.folder)

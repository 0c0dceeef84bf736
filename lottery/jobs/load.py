"""Loads a ticket or a dense base as a model."""

from pathlib import Path
from typing import Any

from lottery.jobs.resolve import find_dense, find_ticket, warn_of_runtime
from lottery.measuring.setup import describe_hardware
from lottery.models import architecture, devices
from lottery.models.checkpoint import Base
from lottery.runtime.load import load_model
from lottery.spec import Spec
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import StoredTicket


def load(
    uri_or_path: str | Path, device: str = "auto", dtype: str = "auto", runtime: str = "dense", base: str = "auto"
) -> tuple[Any, Any]:
    """Loads a ticket (a folder, or models:/NAME/VERSION), and returns its model and tokenizer (None without one).

    Of a ticket every hash is checked. A dense base is loaded by any name that the parameter `model` takes. `base` says
    where the dense base of a ticket of masks lies, if it was moved. Raises InputError where there is no such ticket, or
    where its files are not those that were measured.
    """
    spec = Spec.parse(device=device, dtype=dtype, runtime=runtime)
    where, name = devices.pick_device(spec.device), str(uri_or_path)
    describe_hardware(where, spec.runtime)  # refuses a kernel that cannot run before a ticket is fetched and read
    source: Base | StoredTicket = find_dense(name, base) or open_ticket(find_ticket(name).folder, base)
    if isinstance(source, Base):
        warn_of_runtime(spec.runtime)
    dtype = devices.pick_compute_dtype(spec.dtype, source.dtype, where)
    return load_model(source, source.tensors, dtype, where, spec.runtime), architecture.read_tokenizer(source.folder)

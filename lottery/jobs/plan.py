"""Says what `prune` would do, without doing it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lottery.jobs.resolve import resolve
from lottery.models import devices
from lottery.models.architecture import read_config
from lottery.models.checkpoint import Base
from lottery.models.families import PRUNABLE, Place
from lottery.models.targets import tied_head_notes
from lottery.models.texts import OF_HUB
from lottery.parameters import owl_numbers
from lottery.pruning.allocation import resolve_allocation
from lottery.pruning.calibration import Calibration, resolve_calibration, resolve_text
from lottery.pruning.plan import plan_ticket
from lottery.spec import Spec
from lottery.ticket.stored import StoredTicket

NO_WEIGHTS = "the weights of the base are not on this machine"
OPEN = "allocation={word}: a run decides how much each layer loses; the plan spreads it evenly"
NO_TEXT = "it needs the text of calibration={text}, which a plan does not download"


def plan(**parameters: Any) -> dict[str, Any]:
    """Returns what `prune` would do: the chosen tensors and layers, their counts, bytes before and after; where data is
    looked at also the memory and the seconds that it takes here.

    It writes nothing and downloads no weights and no text. The parameters are those of `lottery plan`. A folder with
    config.json alone is enough: the shapes then come from the transformers class. Raises InputError and MachineError as
    `prune` does.
    """
    spec = Spec.parse(**parameters)
    source, chosen, _ = resolve(spec, config_only=True)
    calibration, no_id = look(spec, source)
    if isinstance(source, Base) and source.is_config_only:
        no_id = NO_WEIGHTS
    identity = calibration.identity if calibration else None
    allocation = resolve_allocation(spec, source, chosen)
    result = plan_ticket(source, spec, chosen, not no_id, identity, allocation)
    total = sum(source.info(p.name).numel for p in source.places)
    shares = {
        role: sum(source.info(p.name).numel for p in source.places if p.role == role) / total for role in PRUNABLE
    }
    return {
        "base": source.id if isinstance(source, Base) else source.base_record["id"],
        "target": spec.target,
        "sparsity": spec.sparsity,
        "parameters": total,
        "shares": {role: share for role, share in shares.items() if share},
        "tied": source.tied_head is not None,
        "allocation": spec.allocation,
        "notes": tied_head_notes(chosen, source.tied_head)
        + sparser_already(result["tensors"])
        + ([OPEN.format(word=spec.allocation)] if allocation.is_open else []),
        "disk_bytes_before": source.disk_bytes,
        **result,
        **({"no_ticket": no_id} if no_id else {}),
        **(cost_of(spec, source, chosen, calibration) if calibration else {}),
    }


def look(spec: Spec, source: Base | StoredTicket) -> tuple[Calibration | None, str]:
    """Returns what the method of a spec, or its allocation, looks at, None if neither looks at data, and why a text of the
    hub leaves the ticket's id open."""
    base_id = source.id if isinstance(source, Base) else source.base_record["id"]
    text = resolve_text(spec, base_id)
    of_hub = spec.looks_at_data and text in OF_HUB
    found = resolve_calibration(replace(spec, calibration="self") if of_hub else spec, source, base_id)
    return (replace(found, text=text) if found else None), NO_TEXT.format(text=text) if of_hub else ""


def cost_of(
    spec: Spec, source: Base | StoredTicket, chosen: Sequence[Place], calibration: Calibration
) -> dict[str, Any]:
    """Returns the memory and the seconds of a calibrated method, and of an allocation that looks at data: norms are summed
    in a pass of its own, as for wanda on the dense model."""
    from lottery.pruning import cost, rates  # they load scipy

    config = read_config(source.folder).get_text_config()
    text = cost.Text(calibration.nsamples, calibration.seqlen, calibration.propagate)
    device = devices.pick_device("auto")
    outliers = (source, replace(spec, method="wanda"), chosen, replace(text, propagate="dense"), config)
    asked = (source, spec, chosen, text, config) if spec.is_calibrated else outliers
    peak = cost.peak(*asked)
    seconds = rates.seconds(*asked, rates.measure(*asked, device))
    if spec.is_calibrated and owl_numbers(spec.allocation):
        seconds["calibrate_s"] += rates.seconds(*outliers, rates.measure(*outliers, device))["calibrate_s"]
    return {
        "calibration": {"text": calibration.text, **asdict(text)},
        "calibration_bytes": asdict(peak),
        "calibration_peak_bytes": peak.total,
        **seconds,
    }


def sparser_already(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a note if targeted tensors keep fewer weights than the sparsity asks for."""
    count = sum(entry["kept"] < entry["requested"] for entry in tensors.values() if "requested" in entry)
    return [f"{count} targeted tensors are already sparser than asked for and stay so"] if count else []

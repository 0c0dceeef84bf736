"""Says what `prune` would do, without doing it."""

from collections.abc import Mapping
from typing import Any

from lottery.jobs.resolve import resolve
from lottery.models.checkpoint import Base
from lottery.models.families import PRUNABLE
from lottery.models.targets import tied_head_notes
from lottery.pruning.plan import plan_ticket
from lottery.spec import Spec


def plan(**parameters: Any) -> dict[str, Any]:
    """Returns what `prune` would do: the chosen tensors and layers, their counts, bytes before and after.

    It writes nothing. The parameters are those of `lottery plan`. A folder with config.json alone is enough: the shapes
    then come from the transformers class. Raises InputError and MachineError as `prune` does.
    """
    spec = Spec.parse(**parameters)
    source, chosen, _ = resolve(spec, config_only=True)
    bare = isinstance(source, Base) and source.is_config_only
    result = plan_ticket(source, spec, chosen, with_ticket_id=not bare)
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
        "notes": tied_head_notes(chosen, source.tied_head) + sparser_already(result["tensors"]),
        "disk_bytes_before": source.disk_bytes,
        **result,
    }


def sparser_already(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a note if targeted tensors keep fewer weights than the sparsity asks for."""
    count = sum(entry["kept"] < entry["requested"] for entry in tensors.values() if "requested" in entry)
    return [f"{count} targeted tensors are already sparser than asked for and stay so"] if count else []

"""What `prune` would do, without doing it."""

from collections.abc import Mapping
from typing import Any

from lottery.jobs.resolve import resolve
from lottery.models.checkpoint import Base
from lottery.models.families import PRUNABLE
from lottery.models.targets import tied_head_notes
from lottery.pruning.plan import plan_ticket
from lottery.spec import Spec


def plan(**parameters: Any) -> dict[str, Any]:
    """What `prune` would do: the tensors and layers chosen, their counts, bytes before and after. Writes nothing.

    A folder with config.json alone will do: shapes then come from the transformers class.
    """
    spec = Spec.parse(**parameters)
    source, chosen, _ = resolve(spec, config_only=True)
    bare = isinstance(source, Base) and source.is_config_only
    found = plan_ticket(source, spec, chosen, with_ticket_id=not bare)
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
        "notes": tied_head_notes(chosen, source.tied_head) + sparser_already(found["tensors"]),
        "disk_bytes_before": source.disk_bytes,
        **found,
    }


def sparser_already(tensors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    count = sum(entry["kept"] < entry["requested"] for entry in tensors.values() if "requested" in entry)
    return [f"{count} targeted tensors are sparser than asked for already and stay so"] if count else []

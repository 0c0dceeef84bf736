"""How the sparsity is spread over the targeted tensors: evenly, by a file, by outliers, or by spectra."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.parameters import owl_numbers
from lottery.progress import say
from lottery.pruning.rules import Rules, counts_by_rules, read_rules
from lottery.pruning.samples import Samples
from lottery.pruning.spreading import blocks_of
from lottery.pruning.tensors import parse_nm_pattern, tensor_info, uniform_counts
from lottery.spec import Spec
from lottery.ticket.record import layer_shares, shares_line


@dataclass(frozen=True)
class Allocation:
    """How many weights each targeted tensor loses. `is_open`: the weights or the data decide, and until then the counts
    are even. `rules`: those of a file."""

    counts: Mapping[str, int]
    is_open: bool = False
    rules: Rules = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What goes into the name of a ticket beside the spec: the content of a file, and not its name."""
        return {"allocation": [list(rule) for rule in self.rules]} if self.rules else {}


def resolve_allocation(spec: Spec, source: Source, chosen: Sequence[Place]) -> Allocation:
    """Returns the allocation of a spec as far as it is known before a weight is read. Raises InputError for a file that
    cannot be used, or does not fit."""
    if spec.allocation == "uniform":
        return Allocation(uniform_counts(spec, source, chosen))
    if spec.allocation == "alpha" or owl_numbers(spec.allocation):
        is_open = 0 < spec.sparsity < 1 and len(blocks_of(chosen)) > 1
        return Allocation(uniform_counts(spec, source, chosen), is_open)
    rules = read_rules(spec.allocation)
    return Allocation(counts_by_rules(rules, spec, source, chosen, parse_nm_pattern(spec)), rules=rules)


def decide(
    allocation: Allocation, spec: Spec, source: Source, chosen: Sequence[Place], samples: Samples | None
) -> tuple[Mapping[str, int], float]:
    """Returns how many weights each targeted tensor loses, and the seconds that samples took to go through the blocks.

    A line says what each layer loses. In a target of one layer, or of none, there is nothing to spread.
    """
    counts, looked_s = allocation.counts, 0.0
    if allocation.is_open:
        if spec.allocation == "alpha":
            from lottery.pruning.alpha import counts_by_spectra

            counts = counts_by_spectra(spec, source, chosen)
        else:
            from lottery.pruning.owl import counts_by_outliers  # it needs transformers

            assert samples, "an allocation that looks at data gets samples"
            counts, looked_s = counts_by_outliers(spec, source, chosen, samples)
        say(
            f"allocation={spec.allocation}: the layers lose {shares_line(layer_shares(as_entries(counts, source, chosen)))}"
        )
    elif (spec.allocation == "alpha" or owl_numbers(spec.allocation)) and 0 < spec.sparsity < 1:
        say(
            f"warning: allocation={spec.allocation}: the target lies in one layer, or in none, so that there is nothing to spread"
        )
    return counts, looked_s


def as_entries(counts: Mapping[str, int], source: Source, chosen: Sequence[Place]) -> list[dict[str, Any]]:
    """Returns what a record would say of each tensor, as far as `layer_shares` reads it."""
    infos = [(p, tensor_info(source, p)) for p in chosen if p.layer is not None]
    return [{"layer": p.layer, "shape": i.shape, "requested": i.numel - counts[p.name]} for p, i in infos]

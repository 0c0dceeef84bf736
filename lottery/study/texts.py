"""This file knows the texts that the tickets of a study are calibrated with: which specs mean one ticket, and which
tickets cannot be made."""

from dataclasses import replace

from lottery.errors import InputError, MachineError
from lottery.measuring.cache import Cache
from lottery.measuring.setup import resolve_dataset
from lottery.models.texts import OF_HUB
from lottery.pruning.calibration import digest_of, resolve_propagation, resolve_text
from lottery.pruning.plan import UnfitError
from lottery.spec import Spec


class FlatteringError(UnfitError):
    """A ticket would be calibrated with the text that it is measured on."""


def canonical(spec: Spec, base_id: str) -> Spec:
    """Returns the spec with values in place of `auto` for what a method looks at, so that two specs of one ticket are
    equal."""
    if not spec.looks_at_data:
        return spec
    return replace(spec, calibration=resolve_text(spec, base_id), propagate=resolve_propagation(spec))


def check_flattery(spec: Spec, base_id: str) -> None:
    """Raises FlatteringError for a method that would look at the embedded text, where that is the evaluation text."""
    if spec.looks_at_data and resolve_text(spec, base_id) == "builtin" == resolve_dataset(spec, base_id):
        raise FlatteringError(
            f"calibration=builtin: model={base_id} is measured on that text, which would flatter method={spec.method}; "
            f"give another calibration or dataset"
        )


def why_unreachable(text: str, cache: Cache) -> InputError | MachineError | None:
    """Returns why a calibration text of the hub cannot be had, None if it can. Raises InputError for a file that cannot
    be read."""
    try:
        cache.get_or_compute(("calibration text", text), lambda: digest_of(text))
    except (InputError, MachineError) as e:
        if text not in OF_HUB:
            raise
        return e
    return None

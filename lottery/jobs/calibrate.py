"""What a method of a job looks at: the text, the samples of it, and whether the evaluation text holds them too."""

from dataclasses import replace
from typing import Any

from lottery.measuring.cache import Cache
from lottery.measuring.setup import Setup, resolve_dataset
from lottery.models.architecture import read_tokenizer
from lottery.models.checkpoint import Base
from lottery.models.texts import read_text
from lottery.progress import say
from lottery.pruning import overlap
from lottery.pruning.calibration import Calibration, draw_samples, resolve_calibration
from lottery.pruning.samples import Samples
from lottery.spec import Spec
from lottery.ticket.stored import StoredTicket


def find_calibration(spec: Spec, source: Base | StoredTicket, cache: Cache) -> Calibration | None:
    """Returns what the method of a spec, or its allocation, looks at; None if neither looks at data. A study reads a text
    once."""
    asked = (spec.method, spec.allocation, spec.calibration, spec.nsamples, spec.seqlen, spec.propagate, spec.seed)
    base_id = source.base_record["id"]
    return cache.get_or_compute(
        ("calibration", source.folder, *asked), lambda: resolve_calibration(spec, source, base_id)
    )


def draw(
    calibration: Calibration | None,
    spec: Spec,
    source: Base | StoredTicket,
    base: Base | None,
    setup: Setup,
    cache: Cache,
) -> tuple[Samples | None, dict[str, str]]:
    """Returns the samples, and the tag `overlap` where the evaluation text shares a run of words with them.

    Raises InputError for a text that is too short, and as `draw_samples` does.
    """
    if calibration is None:
        return None, {}
    writer: Base | StoredTicket = source
    if calibration.text == "self" and isinstance(source, StoredTicket):
        if base is None:
            say("warning: calibration=self: the dense base is not here, so that the ticket itself writes the text")
        writer = base or source
    # What a block sees of it changes no sample, so that methods of both kinds share the text that a model writes.
    where = (writer.folder, replace(calibration, propagate=""), setup.device)
    ids_NT = cache.get_or_compute(("samples", *where), lambda: draw_samples(calibration, writer, setup.device))
    samples = Samples(calibration, ids_NT, setup.device)
    if setup.protocol is None:
        return samples, {}
    dataset = resolve_dataset(spec, source.base_record["id"])
    shared = cache.get_or_compute(("overlap", *where, dataset), lambda: find_overlap(source, ids_NT, dataset))
    return samples, {"overlap": "yes"} if shared else {}


def find_overlap(source: Base | StoredTicket, ids_NT: Any, dataset: str) -> str | None:
    """Returns a run of words that the samples and the evaluation text share, with a warning; None if there is none."""
    tokenizer = read_tokenizer(source.folder)
    assert tokenizer, "the evaluation text was read with it"
    texts = [tokenizer.decode(ids_T, skip_special_tokens=True) for ids_T in ids_NT]
    shared = overlap.shared_run(texts, read_text("dataset", dataset)[1])
    if shared:
        say(overlap.warning(dataset, shared))
    return shared

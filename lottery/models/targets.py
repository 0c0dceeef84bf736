"""What a target expression means: the tensors that are to lose weights."""

import re
from collections.abc import Sequence
from dataclasses import replace

from lottery.errors import InputError, did_you_mean
from lottery.models.families import PRUNABLE, Place, projection_names


def layer_range(term: str, layers: str, count: int) -> range:
    """`early`, `late`, `7` or `8-15` of a model with `count` decoder layers."""
    if layers == "early":
        return range(count // 2)
    if layers == "late":
        return range(count // 2, count)
    if match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", layers):
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < count:
            return range(first, last + 1)
    raise InputError(
        f"target={term}: {layers!r} names no layers; this model has layers 0-{count - 1}: "
        f"give early, late, one number or FIRST-LAST"
    )


def resolve_target(target: str, places: Sequence[Place], tied_head: str | None = None) -> list[Place]:
    """The prunable tensors that a target expression means, in checkpoint order, each once.

    `tied_head` is the name that the head would have if it were not the embedding matrix itself. Chosen without the
    embeddings, it comes last, as a copy of them that is to be untied; chosen with them, it is the same tensor.
    Raises InputError where a term is unknown or matches nothing.
    """
    count = 1 + max((p.layer for p in places if p.layer is not None), default=-1)
    named = {p.name: projection_names(p.name) for p in places if p.projection}
    projections = sorted({name for names in named.values() for name in names})
    shared = [p for p in places if p.role == "embeddings"] if tied_head else []
    copies = [replace(p, name=tied_head, role="lm_head", copy_of=p.name) for p in shared if tied_head]
    chosen: set[str] = set()
    for term in (t.strip() for t in target.split("+")):
        component, at, layers = term.partition("@")
        if term in ("early", "late"):
            component, at, layers = "all", "@", term
        if component == "all":
            found = [p for p in places if p.role in ("attention", "mlp")]
        elif component in PRUNABLE:
            found = [p for p in (*places, *copies) if p.role == component]
        elif component in projections:
            found = [p for p in places if component in named.get(p.name, ())]
        elif component in ("early", "late"):
            raise InputError(f"target={target}: {component} takes no @LAYERS; give a component, as in mlp@{component}")
        else:
            known = ("all", "early", "late", *PRUNABLE, *(name for name in projections if "." not in name))
            raise InputError(f"target={target}: {component!r} is unknown; {did_you_mean(component, known)}")
        if at:
            inside = layer_range(term, layers, count)
            found = [p for p in found if p.layer is not None and p.layer in inside]
        if not found:
            raise InputError(f"target={target}: {term!r} matches no tensor of this model: it is in no layer")
        chosen |= {p.name for p in found}
    chosen -= {p.name for p in copies if p.copy_of in chosen}
    return [p for p in (*places, *copies) if p.name in chosen]


def tied_head_notes(chosen: Sequence[Place], tied_head: str | None) -> list[str]:
    """What a person should know of a choice that touches a head which is the embedding matrix itself."""
    if not tied_head:
        return []
    if any(p.copy_of for p in chosen):
        return [
            "the head is tied to the embeddings: the ticket gets a head of its own (tie_word_embeddings=false), "
            "the embeddings stay as they are"
        ]
    if any(p.role == "embeddings" for p in chosen):
        return ["the head is the embedding matrix itself (tied): both are pruned, counted once"]
    return []

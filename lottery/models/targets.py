"""Resolves a target expression, such as `mlp@8-15`, to the tensors that will be pruned."""

import re
from collections.abc import Sequence
from dataclasses import replace

from lottery.errors import InputError, did_you_mean
from lottery.models.families import PRUNABLE, Place, projection_names


def layer_range(term: str, layers: str, count: int) -> range:
    """Returns the layers that `early`, `late`, `7` or `8-15` means in a model with `count` decoder layers.

    Raises InputError for any other text, and for layers that the model does not have.
    """
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


def format_ranges(numbers: Sequence[int]) -> str:
    """Returns the numbers as ranges: [0, 1, 2, 5] becomes "0-2, 5"."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def resolve_target(target: str, places: Sequence[Place], tied_head: str | None = None) -> list[Place]:
    """Returns the prunable tensors that a target expression means, in checkpoint order, each once.

    `tied_head` is the name that the head would have if it were not the embedding matrix itself. A target with the head
    and without the embeddings gets the head as the last tensor, a copy of the embeddings that will be untied. A target
    with both gets the shared tensor once. Raises InputError when a term is unknown or matches nothing.
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
            matching = [p for p in places if p.role in ("attention", "mlp")]
        elif component in PRUNABLE:
            matching = [p for p in (*places, *copies) if p.role == component]
        elif component in projections:
            matching = [p for p in places if component in named.get(p.name, ())]
        elif component in ("early", "late"):
            raise InputError(f"target={target}: {component} takes no @LAYERS; give a component, as in mlp@{component}")
        else:
            known = ("all", "early", "late", *PRUNABLE, *(name for name in projections if "." not in name))
            raise InputError(f"target={target}: {component!r} is unknown; {did_you_mean(component, known)}")
        if at:
            inside = layer_range(term, layers, count)
            matching = [p for p in matching if p.layer is not None and p.layer in inside]
        if not matching:
            raise InputError(f"target={target}: {term!r} matches no tensor of this model: it is in no layer")
        chosen |= {p.name for p in matching}
    chosen -= {p.name for p in copies if p.copy_of in chosen}
    return [p for p in (*places, *copies) if p.name in chosen]


def tied_head_notes(chosen: Sequence[Place], tied_head: str | None) -> list[str]:
    """Returns notes for the user when the chosen tensors touch a head that is tied to the embeddings."""
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

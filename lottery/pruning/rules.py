"""Reads the file of an allocation: lines of PATTERN: SPARSITY, which say how much each targeted tensor loses."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lottery.errors import InputError
from lottery.files.home import resolve_path
from lottery.files.yaml_files import read_yaml
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.targets import resolve_target
from lottery.parameters import float_range
from lottery.pruning.tensors import tensor_info
from lottery.spec import Spec

Rules = tuple[tuple[str, float], ...]  # (pattern, sparsity), in the order of the file
EXAMPLE = "give lines such as `mlp@late: 0.6`"
WILD = "*?["


def read_rules(word: str) -> Rules:
    """Returns what an allocation's file holds. Raises InputError for a file that cannot be used."""
    what = f"allocation={word}"
    path = Path(resolve_path(word, "allocation"))
    if not path.is_file():
        raise InputError(f"{what}: {'it is a folder' if path.is_dir() else 'there is no such file'}; give a .yaml file")
    found = read_yaml(path, what)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{what}: it holds no lines of PATTERN: SPARSITY; {EXAMPLE}")
    parse = float_range(0, 1)["parse"]
    for pattern, value in found.items():
        if not isinstance(pattern, str) or not isinstance(value, str):
            raise InputError(f"{what}: {pattern}: it holds no single number; {EXAMPLE}")
    return tuple((pattern.strip(), parse(f"{what}: {pattern}", value)) for pattern, value in found.items())


def counts_by_rules(
    rules: Rules, spec: Spec, source: Source, chosen: Sequence[Place], groups: tuple[int, int] | None
) -> dict[str, int]:
    """Returns how many weights each targeted tensor loses: round(its sparsity * its weights).

    The first pattern that matches a tensor decides. Raises InputError for a pattern that matches none, for a tensor that
    none matches, and where the tensors together would lose another share than the sparsity, by more than half a weight
    each; with an N:M pattern also where a tensor would lose another share than that gives.
    """
    what = f"allocation={spec.allocation}"
    sparsity = match_all(rules, spec, source, chosen, what)
    numel = {p.name: tensor_info(source, p).numel for p in chosen}
    if groups:
        given = 1 - groups[0] / groups[1]
        for name, asked in sparsity.items():
            if asked != given:
                raise InputError(
                    f"{what}: it asks for {asked:g} of {name!r}, but pattern={spec.pattern} removes {given:g} of each tensor; "
                    f"give that, or pattern=unstructured"
                )
    total = sum(numel.values())
    asked_for = math.fsum(sparsity[name] * numel[name] for name in numel)
    if abs(asked_for - spec.sparsity * total) > len(numel) / 2:
        raise InputError(
            f"{what}: its mean over the targeted weights is {asked_for / total!r}, which sparsity={spec.sparsity:g} "
            f"contradicts; give sparsity={asked_for / total!r}, or other numbers in the file"
        )
    return {name: round(sparsity[name] * numel[name]) for name in numel}


def match_all(rules: Rules, spec: Spec, source: Source, chosen: Sequence[Place], what: str) -> Mapping[str, float]:
    """Returns tensor -> sparsity, by the first pattern that matches it."""
    names, found = [p.name for p in chosen], dict[str, float]()
    for pattern, sparsity in rules:
        if not (matching := matches(pattern, names, source, what)):
            raise InputError(
                f"{what}: the pattern {pattern!r} matches no tensor of target={spec.target}; {nearest(pattern, names)}"
            )
        for name in matching:
            found.setdefault(name, sparsity)
    if without := [name for name in names if name not in found]:
        raise InputError(
            f"{what}: no pattern matches {without[0]!r}{f' and {len(without) - 1} more' if len(without) > 1 else ''} of "
            f"target={spec.target}; add a line for it, or the pattern '*' as the last one"
        )
    return found


def nearest(pattern: str, names: Sequence[str]) -> str:
    """Returns the patterns of all layers that resemble a pattern, else the name of a tensor as an example."""
    known = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    found = difflib.get_close_matches(pattern, [*known, *names], n=2, cutoff=0.6)
    return f"did you mean {' or '.join(found)}?" if found else f"the first of its tensors is {names[0]!r}"


def matches(pattern: str, names: Sequence[str], source: Source, what: str) -> list[str]:
    """Returns the targeted tensors that a pattern means: with *, ? or [ it is a pattern of names, else the name of a
    tensor, or a term as the parameter `target` takes it."""
    if pattern in names:
        return [pattern]
    if any(c in pattern for c in WILD):
        return [name for name in names if fnmatchcase(name, pattern)]
    try:
        meant = {p.name for p in resolve_target(pattern, source.places, source.tied_head)}
    except InputError as e:
        raise InputError(f"{what}: {str(e).removeprefix(f'target={pattern}: ')}") from e
    return [name for name in names if name in meant]

"""This file plans a study before anything is made and compares the size of its tickets with the free disk space."""

import shutil
from dataclasses import replace
from pathlib import Path

from lottery.errors import InputError, MachineError
from lottery.files.home import home
from lottery.measuring.cache import Cache
from lottery.measuring.setup import resolve_dataset
from lottery.models.texts import read_text
from lottery.progress import say
from lottery.pruning.calibration import SETTINGS, resolve_text
from lottery.registry.address import is_server
from lottery.study.design import Study
from lottery.study.planning import Part, Plan, make_plan
from lottery.study.texts import why_unreachable

CONFIRM_BYTES = 100 * 10**9  # tickets of more than so many bytes are written only if a person says yes


def free_bytes(plan: Plan) -> tuple[int | None, Path]:
    """Returns (free bytes, folder) of the folder that the tickets fill. A server's free space is unknown (None)."""
    kept = all(part.spec.register == "none" for part in plan.tickets)
    folder = home() if kept else Path.cwd()
    existing = next(f for f in (folder, *folder.parents) if f.exists())
    served = not kept and is_server()
    return (None if served else shutil.disk_usage(existing).free), folder


def check_disk_space(plan: Plan, yes: bool) -> None:
    """Raises InputError if a person must say yes first, because the tickets are large or do not fit.

    A study that was begun is not checked again, since some of its tickets exist already.
    """
    free, _ = free_bytes(plan)
    if not yes and plan.run is None and plan.disk_bytes > min(CONFIRM_BYTES if free is None else free, CONFIRM_BYTES):
        raise InputError(
            f"study={plan.study.name}: its tickets take {plan.disk_bytes / 1e9:,.1f} GB; give --yes if the disk has "
            f"room for them, or give fewer models, or storage=mask"
        )


def prepare_study(study: Study, fresh: bool = False, read_texts: bool = True) -> tuple[Plan, Cache]:
    """Returns the plan of a study and says what it will make, before anything is made.

    With `read_texts` every text is read, so that what is wrong with one ends the study now and not hours later.
    """
    cache = Cache()
    plan = replace(make_plan(study, cache), fresh=fresh)
    warn_of_unused(plan)
    if read_texts:
        check_datasets(plan)
        plan = leave_out_unreachable(plan, cache)
    count, (free, folder) = len(plan.refined), free_bytes(plan)
    searches = f" and {count} search{'es' if count > 1 else ''} for a sparsity" if count else ""
    room = f"{free / 1e9:,.1f} GB are free in {folder}" if free is not None else "the server's free space is not known"
    say(f"{plan.title}: {len(plan.tickets)} tickets{searches}, {plan.disk_bytes / 1e9:,.2f} GB on disk in all; {room}")
    for left in plan.left_out:
        say(f"left out, {left['model']}: {left['reason']}")
    return plan, cache


def warn_of_unused(plan: Plan) -> None:
    """Warns of parameters of the calibration that no ticket uses, because no method looks at data."""
    given = {name: values for name, values in plan.study.parameters.items() if name in SETTINGS}
    if given and not any(part.spec.looks_at_data for part in plan.tickets):
        said = ", ".join(f"{name}={','.join(values)}" for name, values in given.items())
        say(f"warning: {said}: ignored, because no method of the study {plan.study.name} looks at data")


def check_datasets(plan: Plan) -> None:
    """Raises InputError or MachineError for an evaluation text that cannot be had."""
    for dataset in {resolve_dataset(p.spec, p.base_id) for p in plan.baselines if "perplexity" in p.spec.measures}:
        read_text("dataset", dataset)


def leave_out_unreachable(plan: Plan, cache: Cache) -> Plan:
    """Returns the plan without the tickets whose calibration text the hub does not give, with the reason.

    The other tickets keep the names of their parts. Raises InputError for a file that cannot be read, and the reason
    itself if no ticket is left.
    """
    reasons: dict[str, InputError | MachineError] = {}  # part -> why its text cannot be had
    for part in plan.tickets:
        if part.spec.looks_at_data and (reason := why_unreachable(resolve_text(part.spec, part.base_id), cache)):
            reasons[part.part] = reason
    if not reasons:
        return plan
    if len(reasons) == len(plan.tickets):
        raise next(iter(reasons.values()))
    left_out = list(plan.left_out)
    for part in plan.tickets:
        if part.part in reasons:
            left = {"model": part.spec.model, "target": part.spec.target, "reason": str(reasons[part.part])}
            left_out += [left] if left not in left_out else []

    def has_text(part: Part) -> bool:
        return not reasons.keys() & {part.part, *part.points}

    tickets, refined = ([part for part in parts if has_text(part)] for parts in (plan.tickets, plan.refined))
    return replace(plan, tickets=tickets, refined=refined, left_out=left_out)

"""This file plans a study before anything is made and compares the size of its tickets with the free disk space."""

import shutil
from dataclasses import replace
from pathlib import Path

from lottery.errors import InputError
from lottery.files.home import home
from lottery.measuring.cache import Cache
from lottery.progress import say
from lottery.registry.address import is_server
from lottery.study.design import Study
from lottery.study.planning import Plan, make_plan

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


def prepare_study(study: Study, fresh: bool = False) -> tuple[Plan, Cache]:
    """Returns the plan of a study and says what it will make, before anything is made."""
    cache = Cache()
    plan = replace(make_plan(study, cache), fresh=fresh)
    count, (free, folder) = len(plan.refined), free_bytes(plan)
    searches = f" and {count} search{'es' if count > 1 else ''} for a sparsity" if count else ""
    room = f"{free / 1e9:,.1f} GB are free in {folder}" if free is not None else "the server's free space is not known"
    say(f"{plan.title}: {len(plan.tickets)} tickets{searches}, {plan.disk_bytes / 1e9:,.2f} GB on disk in all; {room}")
    for left in plan.left_out:
        say(f"left out, {left['model']}: {left['reason']}")
    return plan, cache

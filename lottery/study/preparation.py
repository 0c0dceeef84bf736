"""A study before anything is made: its tickets, and the room on the disk that they take."""

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

CONFIRM_BYTES = 100 * 10**9  # bytes of tickets that are not written without being asked for


def free_bytes(plan: Plan) -> tuple[int | None, Path]:
    """What is free in the folder of this machine that fills; None where a server takes the tickets."""
    kept = all(part.spec.register == "none" for part in plan.tickets)
    folder = home() if kept else Path.cwd()
    there = next(f for f in (folder, *folder.parents) if f.exists())
    served = not kept and is_server()
    return (None if served else shutil.disk_usage(there).free), folder


def check_disk_space(plan: Plan, yes: bool) -> None:
    """Raises InputError where a person has to say yes first. A study that was begun has been asked, and has some of its
    tickets already."""
    free, _ = free_bytes(plan)
    if not yes and plan.run is None and plan.disk_bytes > min(CONFIRM_BYTES if free is None else free, CONFIRM_BYTES):
        raise InputError(
            f"study={plan.study.name}: its tickets take {plan.disk_bytes / 1e9:,.1f} GB; say --yes if there is room for them, "
            f"or give fewer models, or storage=mask"
        )


def prepare_study(study: Study, fresh: bool = False) -> tuple[Plan, Cache]:
    """What will be done, said before anything is."""
    cache = Cache()
    plan = replace(make_plan(study, cache), fresh=fresh)
    count, (free, folder) = len(plan.refined), free_bytes(plan)
    searches = f" and {count} search{'es' if count > 1 else ''} for a sparsity" if count else ""
    room = f"{free / 1e9:,.1f} GB are free in {folder}" if free is not None else "what the server has free is not known"
    say(f"{plan.title}: {len(plan.tickets)} tickets{searches}, {plan.disk_bytes / 1e9:,.2f} GB on disk in all; {room}")
    for left in plan.left_out:
        say(f"left out, {left['model']}: {left['reason']}")
    return plan, cache

"""Writes a study's report: a folder of files, and an MLflow run that holds them. It reads MLflow alone and needs no
torch."""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError
from lottery.files.home import make_folder, resolve_path
from lottery.progress import say
from lottery.registry import parts, runs, store
from lottery.report import results, saved
from lottery.report.answers import open_line
from lottery.report.folder import SUMMARY, check_folder, write_files
from lottery.report.page import build_page


def write_report(study: str = "", out: str | Path = "report", filter: str = "", record: bool = True) -> dict[str, Any]:
    """Writes the report of a study (named as in `results.load`, or files that analysis/collect.py wrote) into the folder
    `out`, and logs it as a run if `record` and if the study is in the store.

    Returns the summary that report.json holds, with the folder, the page and the run's id. Raises InputError for an
    unknown study, a study without measured tickets, or a folder that holds other files.
    """
    folder = resolve_path(out, "out")
    check_folder(folder, out)
    from_files = saved.is_saved(study)
    if from_files and filter:
        raise InputError(f"filter={filter}: study={study} is given too; give one of them")
    client = None if from_files else store.connect(read_only=True)
    found = saved.read_saved(study) if client is None else results.load(client, study, filter)
    files, summary = build_page(found)
    make_folder(folder, "out")
    files[SUMMARY] = json.dumps(summary, indent=1).encode() + b"\n"
    write_files(folder, files)
    run_id = None
    if record and client is not None:
        run_id = log_report(client, folder, files, found, {"study": study or "newest", "out": str(out)})
    return {**summary, "out": str(folder), "index": str(folder / "index.html"), "run_id": run_id}


def log_report(
    client: store.Client, folder: Path, files: Iterable[str], found: results.Results, params: Mapping[str, str]
) -> str | None:
    """Logs the report as a run and returns the run's id. If the store refuses it, warns and returns None: the files
    exist."""
    names = ",".join(s.name for s in found.studies) or "tickets"
    tags = {"kind": "report", "study": names} | {parts.part_key(s.run_id): "report" for s in found.studies}
    try:
        with runs.open_run(client, uuid.uuid4().hex[:16], f"report {names}", params, tags) as run:
            for name in files:
                client.log_artifact(run.id, str(folder / name), str(Path(name).parent) if "/" in name else None)
            run.finish()
            return run.id
    except (*store.STORE_ERRORS, MachineError) as e:
        say(f"warning: {store.store_name()} did not take the report ({store.first_line(e)}); it is in {folder}")
        return None


def answers_text(summary: Mapping[str, Any]) -> str:
    """Returns each answered question with its answer, and the others in one line, as text for a terminal."""
    lines = [summary["not_judged"]] if summary["not_judged"] else []
    for a in summary["answers"]:
        if a["answer"]:
            lines += [f"{a['question']} {a['answer']}", *(f"  {line}" for line in a["sentence"].split("\n"))]
    rest = open_line([(a["question"], a["sentence"]) for a in summary["answers"] if not a["answer"]])
    return "\n".join([*lines, rest] if rest else lines)


def summary_text(summary: Mapping[str, Any]) -> str:
    """Returns the answers, what is missing, and where the report is, as text for a terminal."""
    absent = [f"{r['state']}: {r['title']} of {r['base']}: {r['reason']}" for r in summary["absent"]]
    lines = [answers_text(summary), *(re.sub(r"\s+", " ", line) for line in absent)]
    lines.append(f"{summary['tickets']} tickets; report: {summary['index']}")
    if summary["run_id"]:
        lines.append(f"run: {summary['run_id']}")
    return "\n".join(lines)

"""Writes what studies, or a hypothesis, found into one small JSON file, from which figures are made without the store.

    python analysis/collect.py --study NAME_OR_RUN [--study ...] --out analysis/results/NAME.json
    python analysis/collect.py --hypothesis NAME_OR_RUN --out analysis/results/hypothesis-NAME.json

It reads the tracking store that MLFLOW_TRACKING_URI names; a hypothesis may also be given as the file hypothesis.json that
its run logged. Several hypotheses, with commas between them, are joined if they differ in their seeds alone. `lottery report
--study FILE.json` writes the report of a file of studies, and `python analysis/figures.py` draws the figures of the documents
from the files in analysis/results, where those of hypotheses are named hypothesis-NAME.json. A file names models and texts by
the last part of their paths, and no folder.
"""

import functools
import sys
from importlib.metadata import version
from pathlib import Path

import click

LIBRARIES = ("mlflow", "numpy", "torch", "transformers")


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--study", "studies", multiple=True, help="A study's name or id, or its run's id.")
@click.option(
    "--hypothesis", help="A hypothesis' name or id, its run's id, or its hypothesis.json; several seeds with commas."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write: FILE.json.")
def main(studies: tuple[str, ...], hypothesis: str | None, out: Path) -> None:
    from lottery.errors import InputError, known_failure
    from lottery.progress import quiet_libraries

    quiet_libraries()
    try:
        if bool(studies) == bool(hypothesis):
            raise InputError("study, hypothesis: give one of them: --study NAME, or --hypothesis NAME")
        if out.suffix != ".json":
            raise InputError(f"out={out}: give a file that ends in .json")
        click.echo(collect_hypothesis(hypothesis, out) if hypothesis else collect(studies, out))
    except Exception as e:  # one that is not known to have a line of its own is raised again
        if (known := known_failure(e)) is None:
            raise
        click.echo(f"Error: {known[0]}", err=True)
        sys.exit(known[1])


def collect(studies: tuple[str, ...], out: Path) -> str:
    """Writes the file and returns a line that says what it holds."""
    from lottery.registry import store
    from lottery.report import results, saved

    client = store.connect(read_only=True)
    names = [name.strip() for given in studies for name in given.split(",") if name.strip()]
    records = [saved.to_record(results.load(client, name)) for name in names]
    size = write(out, saved.file_text(records, versions()))
    tickets = sum(row["kind"] == "ticket" for record in records for row in record["rows"])
    return f"{out}: {tickets} tickets of {', '.join(record['name'] for record in records)}, {size:,} bytes"


def collect_hypothesis(name: str, out: Path) -> str:
    """Writes the file and returns a line that says what it holds. Names with commas between them are joined."""
    from lottery.hypothesis.joining import join_records
    from lottery.registry import store
    from lottery.report import hypothesis_saved as saved

    client = functools.cache(lambda: store.connect(read_only=True))
    records = [saved.find_record(client, part.strip()) for part in name.split(",") if part.strip()]
    record = records[0] if len(records) == 1 else join_records(records)
    size = write(out, saved.file_text(record, versions()))
    return (
        f"{out}: {len(record['trainings'])} trainings of {record['name']} on {record['text']['name']}, {size:,} bytes"
    )


def versions() -> dict[str, str]:
    """Returns the versions that made a file."""
    from lottery import __version__

    about = {"lottery": __version__, "python": ".".join(map(str, sys.version_info[:2]))}
    return about | {name: version(name) for name in LIBRARIES}


def write(out: Path, text: str) -> int:
    """Writes the file, and returns its size in bytes."""
    from lottery.files.atomic import atomic_write
    from lottery.files.home import make_folder

    content = text.encode()
    make_folder(out.absolute().parent, "out")
    atomic_write(out.absolute(), content)
    return len(content)


if __name__ == "__main__":
    main()

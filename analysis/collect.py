"""Writes what studies found into one small JSON file, from which figures and reports are made without the store.

    python analysis/collect.py --study NAME_OR_RUN [--study ...] --out analysis/results/NAME.json

It reads the tracking store that MLFLOW_TRACKING_URI names. `lottery report --study FILE.json` writes the report of such a
file, and `python analysis/figures.py` draws the figures of the documents from those in analysis/results. The file names
models and texts by the last part of their paths, and no folder.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import click

LIBRARIES = ("mlflow", "numpy", "torch", "transformers")


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--study", "studies", multiple=True, required=True, help="A study's name or id, or its run's id.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write: FILE.json.")
def main(studies: tuple[str, ...], out: Path) -> None:
    from lottery.errors import known_failure
    from lottery.progress import quiet_libraries

    quiet_libraries()
    try:
        click.echo(collect(studies, out))
    except Exception as e:  # one that is not known to have a line of its own is raised again
        if (known := known_failure(e)) is None:
            raise
        click.echo(f"Error: {known[0]}", err=True)
        sys.exit(known[1])


def collect(studies: tuple[str, ...], out: Path) -> str:
    """Writes the file and returns a line that says what it holds."""
    from lottery import __version__
    from lottery.errors import InputError
    from lottery.files.atomic import atomic_write
    from lottery.files.home import make_folder
    from lottery.registry import store
    from lottery.report import results, saved

    if out.suffix != ".json":
        raise InputError(f"out={out}: give a file that ends in .json")
    client = store.connect(read_only=True)
    names = [name.strip() for given in studies for name in given.split(",") if name.strip()]
    records = [saved.to_record(results.load(client, name)) for name in names]
    about = {"lottery": __version__, "python": ".".join(map(str, sys.version_info[:2]))}
    content = saved.file_text(records, about | {name: version(name) for name in LIBRARIES}).encode()
    make_folder(out.absolute().parent, "out")
    atomic_write(out.absolute(), content)
    tickets = sum(row["kind"] == "ticket" for record in records for row in record["rows"])
    return f"{out}: {tickets} tickets of {', '.join(record['name'] for record in records)}, {len(content):,} bytes"


if __name__ == "__main__":
    main()

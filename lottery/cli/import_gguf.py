"""The command `lottery import`."""

import json

import click

from lottery.cli.options import json_option


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.argument("to", metavar="DIR")
@json_option
def import_model(files: tuple[str, ...], to: str, as_json: bool) -> None:
    """Make a model folder of a GGUF file.

    Example: lottery import model.Q4_K_M.gguf my-model

    A file in parts: any part named NAME-00001-of-00003.gguf, or all pieces in their order.
    """
    from lottery.cli import console
    from lottery.jobs.import_gguf import import_gguf

    found = import_gguf(files, to)
    click.echo(json.dumps(found) if as_json else console.import_text(found))

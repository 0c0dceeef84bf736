"""The command `lottery`: the group of all commands, and how an error ends it. Heavy libraries are imported inside
commands."""

import atexit
import gc
import io
import json
import os
import sys
from dataclasses import asdict
from typing import Any, NoReturn

import click

from lottery import __version__
from lottery.cli.hypothesis import hypothesis
from lottery.cli.import_gguf import import_model
from lottery.cli.options import json_option
from lottery.cli.runs import label, list_tickets, publish, report
from lottery.cli.signals import end_at_signals
from lottery.cli.study import study
from lottery.cli.tickets import evaluate, export, generate, plan, prune, verify
from lottery.errors import known_failure
from lottery.files.home import check_working_folder, ensure_user
from lottery.progress import quiet_libraries


class Lottery(click.Group):
    """The group of commands. Every error ends here as one line on stderr: exit code 2 for bad input, 1 for a failed
    machine."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        quiet_libraries()
        # Imports make hundreds of thousands of objects that stay. By Python's default it looks through them for garbage so
        # often that `lottery list` took 1.6 CPU seconds instead of 1.2. What frees models collects by itself.
        gc.set_threshold(100_000, 20, 20)
        # When Python ends it would look through all of them again, several times, which takes one or two seconds.
        atexit.register(gc.freeze)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a letter that it cannot show must not end the command
                stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
        try:
            result: Any = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]  # *args: any overload
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.format_message())
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            stop("interrupted", 130)
        except Exception as e:  # a bug in lottery is raised again, with its traceback
            if (known := known_failure(e)) is None:
                raise
            stop(*known)
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result


def stop(reason: str, code: int) -> NoReturn:
    """Prints the reason and exits. If `mlflow run` has opened a run that no job has adopted yet, the run gets the
    reason."""
    if "MLFLOW_RUN_ID" in os.environ:
        from lottery.registry import runs

        runs.fail_adopted(reason)
    click.echo(f"Error: {reason}", err=True)
    sys.exit(code)


@click.group(cls=Lottery, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lottery")
def main() -> None:
    """Prune a causal language model, keep the ticket in MLflow, and measure what is left of it."""
    check_working_folder()
    ensure_user()
    end_at_signals()


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine: torch, GPU, store, disk.

    Example: lottery doctor
    """
    from lottery.cli import console, doctor

    checks = doctor.checks()
    click.echo(json.dumps({"checks": [asdict(c) for c in checks]}) if as_json else console.doctor_table(checks))
    if not all(c.fine for c in checks):
        sys.exit(1)


for command in (
    prune,
    evaluate,
    generate,
    plan,
    verify,
    export,
    import_model,
    study,
    hypothesis,
    list_tickets,
    report,
    label,
    publish,
):
    main.add_command(command)

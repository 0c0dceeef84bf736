"""What went wrong, in one line: the input, the machine, or (None) a defect of ours."""

import errno
import sys

import click

from lottery.spec import InputError, MachineError

USER_ERRNO = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def known_failure(e: Exception) -> tuple[str, int] | None:
    """(one line, exit code) for what is wrong with the input or with the machine; None for a defect of ours."""
    if isinstance(e, click.MissingParameter) and isinstance(e.param, click.Option):
        return f"{e.format_message()} {e.param.help}", 2
    if isinstance(e, click.ClickException):
        return e.format_message(), e.exit_code
    if isinstance(e, InputError):
        return str(e), 2
    if isinstance(e, OSError):
        where = f"{e.filename}: " if e.filename else ""
        return f"{where}{e.strerror or e}", 2 if e.errno in USER_ERRNO and e.filename else 1
    if isinstance(e, MachineError):
        return str(e), 1
    # Classes of libraries that are only there if they were needed; they are not imported for this.
    mlflow, torch = sys.modules.get("mlflow"), sys.modules.get("torch")
    if mlflow and isinstance(e, mlflow.exceptions.MlflowException):
        from lottery.tracking import hide_password

        return f"MLflow: {hide_password(' '.join(str(e).split()))[:300]}", 1
    no_memory = isinstance(e, RuntimeError) and "can't allocate memory" in str(e)  # torch on a CPU has no class for it
    if isinstance(e, MemoryError) or no_memory or (torch and isinstance(e, torch.OutOfMemoryError)):
        return "out of memory; give a smaller window, runtime=packed, device=cpu, or measure=none", 1
    return None

"""What a command says that is refused."""

from click.testing import Result


def refused(result: Result, *says: str) -> None:
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output
    assert result.stdout == ""
    for word in says:
        assert word in lines[0], lines[0]

"""`python -m lottery` runs the command line."""

from lottery.cli.main import main

if __name__ == "__main__":
    main(prog_name="lottery")

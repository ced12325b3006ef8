"""`python -m ropewalk` is the command `ropewalk`."""

from pipelines.cli.main import main

if __name__ == "__main__":
    main()

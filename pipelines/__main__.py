"""`python -m pipelines` is `ropewalk`."""

from pipelines.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m pipelines` is `ropewalk`."""

from pipelines.cli.main import main

main()

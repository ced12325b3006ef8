"""The experiment: conf/ -> cells -> workers -> results -> MLflow and tables. README lists the files in that order."""

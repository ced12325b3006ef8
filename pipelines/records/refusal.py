"""The error of every refusal. On its own, as it must load nothing: help and completion import it."""


class Refusal(ValueError):
    """Bad input in a sentence: what was given, what is allowed, what to do. Commands end with exit code 2 on it."""

"""`ropewalk reproduce`: its command line."""

from __future__ import annotations

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal

DESCRIPTION = """
Runs a published table's own protocol (conf/published/NAME.yaml) and shows ours beside theirs with a verdict: reproduced
(within rounding and the table's tolerance), close, not reproduced, or not run and why. Before, it says what that takes.
  ropewalk reproduce published=men_base_bound,yarn_constants
  ropewalk reproduce published=longrope_table1 cluster=gpu
  ropewalk reproduce published=yarn_v3_table5,dynamic_ntk,pi_table3,lceg_table9 --transfer model=tiny
Other overrides are those of a grid: cluster=gpu, limit=10, dtype=float32, task.text=FOLDER, force=true, store=FOLDER.
Exit codes: 0 all that could run is reproduced or close, or all claims hold; 1 not so; 2 nothing could run.
"""

FIXED = ("strategy", "length", "factor", "task")
"""Keys that a table decides itself. Options of the task may be given: they override the protocol."""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "reproduce",
        "check published tables: run their protocol, ours beside theirs",
        DESCRIPTION,
        run,
        usage="published=NAME[,NAME...] [OPTIONS] [KEY=VALUE ...]",
        keys=[
            Key("published", "list", "", "tables, by the names of files in conf/published"),
            Key("rows", "list", "null", "only these rows; null: all"),
            Key("columns", "list", "null", "only these columns; null: all"),
        ],
        composed=True,
    )
    parser.add_argument("--list", action="store_true", help="list every table, what it needs, and whether that is here")
    parser.add_argument(
        "--transfer",
        action="store_true",
        help="test the claims, not the numbers, on another model and text, with paired tests",
    )


def run(options: Options) -> int:
    if options.list:
        from pipelines.report.terminal import console
        from pipelines.reproduce import needs

        needs.show(console)
        return 0
    if not options.words:
        print(arguments.help_text(options), end="")
        return 0
    own, words = arguments.own_keys(options)
    overrides = arguments.overrides(options, words)
    from pipelines.choices.compose import expand
    from pipelines.reproduce import published, reproduce, transfer

    if "published" not in own:
        raise Refusal(f"published=NAME is missing: give one of {', '.join(published.names())} (--list describes them)")
    names = [word.partition("=")[0] for word in words]
    for key in FIXED:
        if any(name == key or (key != "task" and name.startswith(f"{key}.")) for name in names):
            raise Refusal(f"{key}=... is the table's own: ropewalk reproduce takes it from conf/published")
    if not options.transfer and any(name.partition(".")[0] == "model" for name in names):
        raise Refusal("model=... is the table's own; to test its claims on another model, add --transfer")
    [base, *others] = expand([*overrides, "length=2"])
    if others:
        raise Refusal("ropewalk reproduce takes one value each, but of published, rows and columns; no other commas")
    task = {name.removeprefix("task."): base.task[name.removeprefix("task.")] for name in names if "task." in name}
    lists = {key: value.split(",") for key, value in own.items()}
    tables = lists.pop("published")
    if options.transfer:
        return transfer.main(tables, base, task, options.command)
    return reproduce.main(tables, base, {**lists, "task": task}, options.command)

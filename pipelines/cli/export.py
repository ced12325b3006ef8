"""`ropewalk export`: its command line."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli import arguments
from pipelines.cli.arguments import Options, Verbs
from pipelines.cli.meanings import Key
from pipelines.records.refusal import Refusal

DESCRIPTION = """
A strategy over a model in the form an engine takes: the files it needs and the command line that serves it.
CELL is a finished cell's id (its first characters will do) or its name; or give overrides as for ropewalk theory:
  ropewalk export 3f9c02ab --to vllm
  ropewalk export 'smollm2: yarn @16384 perplexity' --to transformers out=~/models/SmolLM2-16k
  ropewalk export model=smollm2 strategy=yarn length=16384 --to llama.cpp,sglang

Engines:
  transformers, transformers-v4   a folder that from_pretrained loads (v5 reads v4's too)
  vllm, sglang                    overrides of the model's own config.json; a folder where the model has none
  llama.cpp                       a GGUF file with the keys, or the tensor, that it takes; and flags for the original
  exllama                         flags, and a folder where flags cannot express it
Weights are linked, not copied, where the disk allows. An engine that cannot express a strategy is listed with the
closest supported alternative (exit code 2).
"""


def add(verbs: Verbs) -> None:
    parser = arguments.add_verb(
        verbs,
        "export",
        "deploy: a cell for transformers, vLLM, SGLang, llama.cpp or ExLlamaV2",
        DESCRIPTION,
        run,
        usage="CELL|KEY=VALUE... --to ENGINE[,ENGINE...] [OPTIONS]",
        keys=[Key("out", "folder", "null", "where the files go; null: exports/ in the store")],
        composed=True,
    )
    parser.add_argument("--to", action="append", default=[], metavar="ENGINES", help="one or more engines, or all")


def run(options: Options) -> int:
    own, words = arguments.own_keys(options)
    from pipelines.choices.compose import expand
    from pipelines.cli import deployment

    # `smollm2: yarn factor=4 @16384 perplexity` holds an equals sign too
    overrides = [word for word in words if "=" in word.split(" ")[0]]
    cells = [word for word in words if word not in overrides]
    engines = _engines(options.to)
    if bool(overrides) == bool(cells) or len(cells) > 1:
        raise Refusal(
            f"given: {options.command}; give one CELL (an id, or a name in quotes) or overrides such as model=smollm2 "
            "strategy=yarn length=16384, not both"
        )
    choices = expand(arguments.overrides(options, overrides)) if overrides else []
    if len(choices) > 1:
        raise Refusal(f"the overrides make {len(choices)} combinations; give one value each")
    request = deployment.ExportRequest(
        cell=cells[0] if cells else "",
        choice=choices[0] if choices else None,
        engines=engines,
        all_engines="all" in "".join(options.to).lower(),
        out=own.get("out"),
    )
    return deployment.main(request)


def _engines(given: Sequence[str]) -> tuple[str, ...]:
    """The engines that --to names.

    Raises:
        Refusal: none, or one that is not known.
    """
    from rope.dialects import ENGINES

    names = [name.strip().lower() for part in given for name in part.split(",") if name.strip()]
    for name in names:
        if name not in (*ENGINES, "all"):
            raise Refusal(f"--to {name}: there is no such engine; there are {', '.join(ENGINES)} and all")
    if not names:
        raise Refusal(f"give --to ENGINE: one or more of {', '.join(ENGINES)}, or all")
    return tuple(ENGINES) if "all" in names else tuple(dict.fromkeys(names))

"""Static rules about what can be read at all, and about layers: which rotate, how far they see, which are scaled."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.doctor import corrections
from pipelines.doctor.files import Files
from pipelines.doctor.keys import NULL_HEAD, PLAIN_WITHOUT_HEAD
from pipelines.doctor.rules import MEASURES, RuleMatch, measures
from rope.config import with_defaults
from rope.geometry import ALL_LAYERS
from rope.strategies import bounded

EXPLAINING = ("V03", "S04", "S12", "S14", "S16", "S17")
"""Rules that say what is wrong with a scaling that cannot be read."""


@measures("R01")
def unreadable(files: Files) -> Iterator[RuleMatch]:
    if files.unrotated is not None:
        return
    measured = {"model_type": files.text.get("model_type")}
    try:
        _ = files.unscaled
    except ValueError as error:
        what, _, todo = str(error).partition("; ")
        case = "empty" if not files.config else "" if todo else "no_advice"
        yield RuleMatch(measured, case, {"what": what, "todo": todo})
        return
    try:
        _ = files.geometries
    except ValueError as error:
        if not any(True for id in EXPLAINING for _ in MEASURES[id](files)):
            yield RuleMatch(measured, "scaling", {"what": error})


def _readable(files: Files) -> bool:
    try:
        return bool(files.parameters)
    except ValueError:
        return False  # which R01 reports


@measures("R02")
def unrotated(files: Files) -> Iterator[RuleMatch]:
    if files.unrotated is not None:
        yield RuleMatch({"model_type": files.text.get("model_type")}, values={"positions": files.unrotated})


@measures("S09")
def scaled_locally(files: Files) -> Iterator[RuleMatch]:
    """Only in classes with rope parameters by layer type: in others one scaling is for all layers, as trained."""
    try:
        parameters = files.parameters
    except ValueError:
        return
    flat = files.written.get(ALL_LAYERS)
    for layers, block in parameters.items():
        if bounded(layers) and block["rope_type"] != "default":
            measured = {"layers": layers, "rope_type": block["rope_type"]}
            if flat is None:
                yield RuleMatch(measured, "bounded", correction=corrections.remove_scaling(layers))
            else:
                yield RuleMatch(measured, "flat")
    for layers, written in files.declared.items():
        if ALL_LAYERS not in parameters and files.rope_type(written) == "yarn" and written.get("truncate") is False:
            yield RuleMatch({"layers": layers, "truncate": False}, "truncate")


@measures("S18")
def not_taken(files: Files) -> Iterator[RuleMatch]:
    """A flat scaling in a class that keeps rope parameters by layer type, and a head_dim that some scalings read."""
    known, flat = files.family, files.written.get(ALL_LAYERS)
    if known is None:
        return
    scaling = files.text.get("rope_scaling")
    if known.by_type is not None and flat is not None and not (scaling and known.scaled):
        place = "rope_scaling" if scaling else "rope_parameters"
        types = list(dict.fromkeys(files.text.get("layer_types") or known.by_type))
        values = {"model_type": known.name, "place": place, "types": " and ".join(types)}
        yield RuleMatch({place: dict(flat)}, "flat", values)
    if known.by_type is None and files.written and flat is None and _readable(files):
        yield RuleMatch({"layers": ", ".join(files.written)}, "nested", {"model_type": known.name})
    hidden, heads = (with_defaults(files.config).get(key) for key in ("hidden_size", "num_attention_heads"))
    if known.name in NULL_HEAD and files.text.get("head_dim") is None and hidden and heads:
        for layers, written in (files.declared or {ALL_LAYERS: {}}).items():
            kind = files.rope_type(written)
            if kind in ("dynamic", "yarn", "longrope") or known.name not in PLAIN_WITHOUT_HEAD:
                size = hidden // heads
                correction = corrections.set_top(head_dim=size)
                yield RuleMatch(
                    {"layers": layers, "rope_type": kind, "head_dim": None}, "head", {"size": size}, correction
                )


@measures("S19")
def chunked_length(files: Files) -> Iterator[RuleMatch]:
    """A length that vLLM reaches by dual chunk attention, which transformers does not have."""
    chunks = files.text.get("dual_chunk_attention_config")
    plain = chunks.get("original_max_position_embeddings") if isinstance(chunks, dict) else None
    if plain and files.limit and plain < files.limit and (files.trained or files.limit) > plain:
        values = {"limit": files.limit, "plain": plain}
        yield RuleMatch({"max_position_embeddings": files.limit, "trained": plain}, values=values)


@measures("S15")
def local_alone(files: Files) -> Iterator[RuleMatch]:
    target = files.target or files.limit
    if files.reach is not None and target and files.reach < target:
        rotating = sum(layer.rotates for layer in files.layers)
        still = len(files.layers) - rotating
        measured = {"window": files.reach, "trained length": files.trained or files.limit, "target": target}
        yield RuleMatch(measured, "beside_still" if still else "", {"rotating": rotating, "still": still})

"""Every causal family of transformers under every strategy: an export must give the logits of the live model."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from strategy_examples import FREQUENCY_STRATEGIES
from tiny_families import ORIGINAL, TRAINED, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rope import families
from rope.config import geometry_of
from rope.dialects import Unsupported, to_transformers
from rope.patch import patched
from rope.strategies import plans, required_options

EXCUSED = {
    "blt": "its parts rotate by configs of their own: the live model and the export are both refused",
    "codegen": "rotates by a table: the live model and the export are both refused",
    "dots3_note": "its language model is dots3_note_text",
    "gemma3n": "its tower needs timm; its language model is gemma3n_text",
    "gemma4_assistant": "attends to the keys of another model",
    "gemma4_unified_assistant": "attends to the keys of another model",
    "gpt-sw3": "a GPT-2: no rotation",
    "gptj": "rotates by a table: the live model and the export are both refused",
    "phimoe": "takes no plan while it lives: compared below with the plan written into its code",
    "roformer": "rotates by a table: the live model and the export are both refused",
}
"""Families that rotate and are not swept, and why."""


def rotates(name):
    """Whether a family is known to rotate, or not known at all."""
    known = families.language_model({"model_type": name})[1]
    return known is None or known.rotates is not False


FAMILIES = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in EXCUSED and rotates(name)]

COMMON = ["deepseek_v3", "gemma3_text", "glm", "gpt_oss", "granite_swa", "llama", "ministral3", "phi3", "smollm3"]
COMMON_STRATEGIES = ["none", "linear", "ntk", "dynamic_ntk", "yarn", "power"]

LISTS = {"longrope", "factors"}
"""Strategies that take a list with a number for every rotated pair."""

WITHOUT_LENGTH = {"recurrent_gemma"}
"""Families whose config has no length."""

LENGTH = 80
"""Tokens: two and a half times what the tiny models were trained for."""

TOLERANCE = 1e-4
"""Largest difference of two logits (of a standard deviation near 1) that float32 explains."""

IDS = torch.arange(2 * LENGTH).reshape(2, LENGTH) * 7 % 89 + 3
MASK = torch.ones(2, LENGTH, dtype=torch.long)
MASK[1, :21] = 0

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
]


class Compared(NamedTuple):
    """What became of an export: equal, different, refused, unmeasured (the live model takes no such plan), or no plan.

    difference: of logits, at most. effect: by how much the strategy changes them.
    """

    outcome: str
    difference: float = 0.0
    effect: float = 0.0
    says: str = ""


def logits(model, masked=True):
    """(2, LENGTH, vocabulary) logits of real tokens: the second row is padded on its left, or both are whole."""
    with torch.no_grad():
        if not masked:
            return model(IDS, use_cache=False).logits
        return model(IDS, attention_mask=MASK, use_cache=False).logits * MASK[..., None]


class Family:
    """A tiny model of one family, and its config.json as transformers saves it."""

    def __init__(self, folder, name, config=None):
        self.folder, self.name = folder, name
        self.config = config or json.loads(tiny_config(name).to_json_string())
        self.geometries = geometry_of(self.config, TRAINED if name in WITHOUT_LENGTH else None)
        self.model = tiny_model(self.read(self.config))
        self.unscaled = logits(self.model)

    def read(self, config):
        (self.folder / "config.json").write_text(json.dumps(config))
        return AutoConfig.from_pretrained(self.folder)

    def built(self, config):
        """The same weights under another config.json."""
        model = AutoModelForCausalLM.from_config(self.read(config)).eval()
        model.load_state_dict(self.model.state_dict())
        return model

    def compared(self, strategy, unmasked=False) -> Compared:
        try:
            options = required_options(strategy, next(iter(self.geometries.values())).pairs)
            own = plans(strategy, self.geometries, LENGTH, **options)
        except ValueError as reason:
            return Compared("no plan", says=str(reason))
        try:
            with patched(self.model, own):
                live = [logits(self.model)] + ([logits(self.model, masked=False)] if unmasked else [])
        except ValueError as reason:
            live, says = [], str(reason)
        try:
            exported = to_transformers(self.config, strategy, options, self.geometries, LENGTH)
        except Unsupported as reason:
            return Compared("refused", says=str(reason))
        model = self.built(exported)
        if not live:
            return Compared("unmeasured", says=says)
        theirs = [logits(model)] + ([logits(model, masked=False)] if unmasked else [])
        difference = max(float((a - b).abs().max()) for a, b in zip(live, theirs, strict=True))
        effect = float((live[0] - self.unscaled).abs().max())
        return Compared("equal" if difference <= TOLERANCE else "different", difference, effect)


def outcomes(family, strategies, unmasked=("yarn",)):
    """What became of every strategy; fails where an export is not the live model."""
    compared = {strategy: family.compared(strategy, strategy in unmasked) for strategy in strategies}
    for strategy, result in compared.items():
        listed = strategy in LISTS and result.outcome == "no plan"  # whose length fits one of the layer types alone
        assert listed or result.outcome in ("equal", "refused"), f"{family.name} under {strategy}: {result}"
        if result.outcome == "refused":
            check_alternative(family, result.says)
    return compared


def check_alternative(family, says):
    """The strategy that a refusal offers is one that can be exported."""
    (offered,) = re.findall(r"the closest supported alternative is (\w+)", says)
    assert family.compared(offered).outcome == "equal"


@pytest.fixture(scope="module")
def table():
    """Lines to print, one a family, with a count at the end: `pytest -s`."""
    results = {}
    yield results
    lines, total = [], Counter()
    for name, compared in sorted(results.items()):
        total.update(result.outcome for result in compared.values())
        worst = max(result.difference for result in compared.values())
        lines.append(f"{name:28} {worst:.1e} {dict(Counter(result.outcome for result in compared.values()))}")
    print(
        "", "family, largest difference of logits, exports", *lines, f"{len(lines)} families: {dict(total)}", sep="\n"
    )


@pytest.mark.parametrize("name", COMMON)
def test_an_export_gives_the_logits_of_the_live_model(tmp_path, name):
    compared = outcomes(Family(tmp_path, name), COMMON_STRATEGIES)
    assert {result.outcome for result in compared.values()} == {"equal"}
    assert all(result.effect > 1e-4 for strategy, result in compared.items() if strategy != "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_in_every_family_an_export_gives_the_logits_of_the_live_model(tmp_path, table, name):
    table[name] = outcomes(Family(tmp_path, name), FREQUENCY_STRATEGIES)


OWN_LENGTH = {"original_max_position_embeddings": ORIGINAL}
DECLARED = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7} | OWN_LENGTH,
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "mscale_all_dim": 0.7},
}


def declaring(config, scaling, v4):
    """The config of a family with one block of rope parameters, with another scaling in it; spelled as v4 or as v5."""
    own = dict(config["rope_parameters"])
    kept = {key: own[key] for key in ("partial_rotary_factor", "mrope_section", "llama_4_scaling_beta") if key in own}
    kept |= OWN_LENGTH if "llama_4_scaling_beta" in own else {}
    if not v4:
        return config | {"rope_parameters": {"rope_theta": own["rope_theta"]} | kept | scaling}
    spelled = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    flat = {key: value for key, value in config.items() if key != "rope_parameters"}
    partial = {"partial_rotary_factor": kept.pop("partial_rotary_factor")} if "partial_rotary_factor" in kept else {}
    return flat | partial | {"rope_theta": own["rope_theta"], "rope_scaling": kept | spelled}


SCALED = ["deepseek_v3", "glm", "llama", "ministral3", "stablelm"]


@pytest.mark.slow
@pytest.mark.parametrize("v4", [False, True], ids=["v5", "v4"])
@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("name", SCALED)
def test_on_top_of_a_declared_scaling_too(tmp_path, name, declared, v4):
    config = declaring(json.loads(tiny_config(name).to_json_string()), DECLARED[declared], v4)
    compared = outcomes(Family(tmp_path, name, config), COMMON_STRATEGIES)
    assert {result.outcome for result in compared.values()} == {"equal"}


def test_the_query_temperature_keeps_its_length():
    config = json.loads(tiny_config("ministral3").to_json_string())
    for strategy in FREQUENCY_STRATEGIES:
        options = required_options(strategy, pairs=8)
        parameters = to_transformers(config, strategy, options, geometry_of(config), LENGTH)["rope_parameters"]
        assert parameters["original_max_position_embeddings"] == ORIGINAL
        assert parameters["llama_4_scaling_beta"] == config["rope_parameters"]["llama_4_scaling_beta"]


def test_layers_with_bases_of_their_own_are_refused():
    config = json.loads(tiny_config("granite_swa").to_json_string())
    geometries = geometry_of(config)
    one = to_transformers(config | {"layer_rope_theta": [1e4, 0]}, "ntk", {}, geometries, LENGTH)
    assert one["layer_rope_theta"] == [one["rope_parameters"]["rope_theta"], 0]
    with pytest.raises(Unsupported, match=r"bases of their own \(layer_rope_theta: 10000.0, 50000.0\)"):
        to_transformers(config | {"layer_rope_theta": [1e4, 5e4]}, "linear", {}, geometries, LENGTH)


@pytest.mark.parametrize("name", ["blt", "codegen", "gptj", "roformer"])
def test_families_that_rotate_by_something_else_are_refused(name):
    config = json.loads(tiny_config(name).to_json_string())
    geometries = geometry_of(config)
    for strategy in ("linear", "ntk", "yarn"):
        with pytest.raises(Unsupported, match="the closest supported alternative is none"):
            to_transformers(config, strategy, {}, geometries, 1024)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name))
    with (
        pytest.raises(ValueError, match=r"no rotary module|rotates 16 pairs"),
        patched(model, plans("linear", geometries, 1024)),
    ):
        pass


def test_code_of_the_models_own_is_refused():
    config = {"model_type": "chatglm", "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}}
    config |= {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 1e4, "max_position_embeddings": 64}
    with pytest.raises(Unsupported, match=r"brings code of its own .* alternative is --to transformers-v4"):
        to_transformers(config, "linear", {}, geometry_of(config), 128)


def test_phimoe_is_compared_with_the_plan_in_its_code(tmp_path):
    family = Family(tmp_path, "phimoe")
    (rotary,) = {m for m in family.model.modules() if type(m).__name__ == "PhimoeRotaryEmbedding"}
    for strategy in FREQUENCY_STRATEGIES:
        options = required_options(strategy, pairs=8)
        ((_, plan),) = plans(strategy, family.geometries, LENGTH, **options)
        rotary.rope_init_fn = lambda _, plan=plan: (torch.tensor(plan.inv_freq), plan.attention_factor)
        live = logits(family.model)
        exported = family.built(to_transformers(family.config, strategy, options, family.geometries, LENGTH))
        torch.testing.assert_close(logits(exported), live, atol=TOLERANCE, rtol=0)

"""Exports to vLLM, SGLang and ExLlamaV2, computed by their own code from the packages that .ci/engines fetches."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from types import SimpleNamespace

import engine_facts
import pytest
import torch
from engine_configs import CONFIGS
from engine_sweep import SOURCES, answers, compare

from rope.config import geometry_of
from rope.dialects import engine_models
from rope.dialects.engine_models import model_class
from rope.rotation import query_scale
from rope.strategies import plans

CACHE = Path(os.environ.get("ROPEWALK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ropewalk"))
FETCHED = CACHE.expanduser() / "engines"

fetched = pytest.mark.skipif(
    not all((FETCHED / name).is_dir() for name in [*SOURCES.values(), "transformers"]),
    reason=f"the engines' packages are not in {FETCHED}: run .ci/engines",
)


@fetched
@pytest.mark.sweep
@pytest.mark.parametrize("engine", SOURCES)
def test_an_engines_own_code_computes_what_was_exported(engine):
    result = compare(engine, FETCHED, every=False)
    assert not result.wrong, "\n".join(f"{label}: {found}" for label, found in result.wrong)
    assert result.compared > 300 and result.worst < 1e-5, result.line()


@fetched
@pytest.mark.sweep
def test_the_comparison_sees_a_scaling_that_an_engine_leaves_out():
    """Mixtral in SGLang under an override that its model file does not read."""
    config = CONFIGS["mixtral"]
    override = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "max_position_embeddings": 2048}
    arguments = ["--json-model-override-args", json.dumps(override), "--context-length", "2048"]
    (answer,) = answers("sglang", FETCHED, [[config, arguments]])
    served = answer["rotary"][0]["tables"][0]["inv_freq"]
    native, linear = (plans(name, geometry_of(config), 2048)[0][1].inv_freq for name in ("none", "linear"))
    assert served == pytest.approx(native, rel=1e-6) and served[0] == pytest.approx(4 * linear[0], rel=1e-6)


@fetched
@pytest.mark.sweep
def test_the_table_of_model_classes_is_what_the_sources_say():
    recorded = json.loads(engine_models.FILE.read_text(encoding="utf-8"))
    models = "model_executor/models"
    assert engine_facts.vllm(FETCHED / "vllm/vllm" / models) == recorded["vllm"]
    assert engine_facts.sglang(FETCHED / "sglang/sglang/srt/models") == recorded["sglang"]
    assert engine_facts.exllama(FETCHED / "exllamav2/exllamav2/architecture.py") == recorded["exllama"]
    for engine, name in SOURCES.items():
        assert (FETCHED / name / f".{recorded['versions'][engine]}").is_file()


@fetched
@pytest.mark.sweep
def test_vllms_own_scale_on_queries_is_the_temperature_that_was_exported():
    source = (FETCHED / "vllm/vllm/model_executor/models/mistral.py").read_text(encoding="utf-8")
    methods = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    scope = {"torch": torch}
    exec(compile(ast.Module([methods["_get_llama_4_attn_scale"]], []), "mistral.py", "exec"), scope)
    served = SimpleNamespace(llama_4_scaling_beta=0.3, llama_4_scaling_original_max_position_embeddings=40)
    theirs = scope["_get_llama_4_attn_scale"](served, torch.arange(500))[:, 0]
    llama = {"model_type": "llama", "head_dim": 16, "max_position_embeddings": 64, "rope_theta": 1e4}
    ((_, plan),) = plans("temperature", geometry_of(llama), 500, attn_scale=0.3, floor_scale=40)
    torch.testing.assert_close(query_scale(plan.query_scale, torch.arange(500)), theirs, rtol=1e-6, atol=0)


def test_a_config_is_served_by_the_class_that_it_names_or_that_its_model_type_has():
    assert model_class("sglang", {"model_type": "mixtral"}).traits == {"unscaled", "whole_theta"}
    named = {"model_type": "llama", "architectures": ["CohereForCausalLM"]}
    assert model_class("vllm", named).traits == {"interleaved"}
    for model_type in ("smollm3", "gpt_neox", "nothing of the kind"):
        assert model_class("sglang", {"model_type": model_type}).traits == {"transformers"}
    assert not model_class("exllama", {"model_type": "smollm3"}).known

"""A strategy deployed to every engine, and read back: the same plan; and what an engine cannot run is refused."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_examples import FREQUENCY_STRATEGIES, settings_for_engines
from support import PROJECT
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from rope import dialects
from rope.config import geometry_of
from rope.dialects import ENGINES, Unsupported, deploy, exllama, sglang, support, support_table, transformers_v4, vllm
from rope.patch import patched
from rope.strategies import CHANGES_ATTENTION, plans

TRAINED = 512
PAIRS = 16
RISING = np.linspace(1.0, 4.0, PAIRS).tolist()
PLAIN = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2 * PAIRS,
    "max_position_embeddings": TRAINED,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
}
ORIGINAL = {"original_max_position_embeddings": 128}
CHECKPOINTS = {
    "plain": PLAIN,
    "partial": PLAIN | {"model_type": "nemotron", "head_dim": 4 * PAIRS, "partial_rotary_factor": 0.5},
    "v5": {key: value for key, value in PLAIN.items() if "rope" not in key}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "linear": PLAIN | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": PLAIN
    | {
        "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | ORIGINAL
    },
    "yarn": PLAIN | {"rope_scaling": {"type": "yarn", "factor": 4.0} | ORIGINAL},
    "longrope": PLAIN
    | {"rope_scaling": {"type": "longrope", "short_factor": [1.5] * PAIRS, "long_factor": RISING} | ORIGINAL},
    "dynamic": PLAIN | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
}
LIMITED = {("exllama", "partial"), ("llama.cpp", "partial")}
"""ExLlamaV2 has no Nemotron, and llama.cpp reads no list of divisors there."""

pytestmark = pytest.mark.usefixtures("one_thread")


def agree(ours, theirs):
    np.testing.assert_allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-9, atol=1e-20)
    assert math.isclose(theirs.attention_factor, ours.attention_factor, rel_tol=1e-9)


def test_every_file_of_the_folder_is_an_engine():
    folder = Path(dialects.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {
        "__init__",
        "deployment",
        "engine_models",
        "llama_cpp_reading",
        "relabel",
    }
    missing = files - {module.__name__.rpartition(".")[2] for module in ENGINES.values()}
    assert not missing, f"rope/dialects/__init__.py: add {', '.join(sorted(missing))} to the modules of ENGINES"
    for engine, module in ENGINES.items():
        for name in ("deploy", "read_back"):
            assert callable(getattr(module, name, None)), (
                f"{module.__file__}: write {name}, as rope/dialects/vllm.py has it"
            )
        assert engine == module.ENGINE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_deployment_reads_back_as_the_plan(engine, checkpoint):
    config = CHECKPOINTS[checkpoint]
    geometries = geometry_of(config)
    deployed = 0
    for strategy in FREQUENCY_STRATEGIES:
        for options in settings_for_engines(strategy, PAIRS):
            for length in (TRAINED // 2, TRAINED, 2048):
                try:
                    ((_, plan),) = plans(strategy, geometries, length, **options)
                except ValueError as refusal:
                    assert "softmax_scale" in str(refusal) and checkpoint == "partial"
                    continue
                before = copy.deepcopy(config)
                try:
                    deployment = deploy(engine, config, strategy, options, geometries, length)
                except Unsupported as refusal:
                    assert "the closest supported alternative" in str(refusal)
                    below_one = engine == "exllama" and plan.attention_factor < 1
                    assert below_one or (engine, checkpoint) in LIMITED, str(refusal)
                    continue
                assert config == before and deployment.engine == engine
                (read,) = ENGINES[engine].read_back(deployment, config).values()
                agree(plan, read.plan(length))
                deployed += 1
    assert deployed > 90 or (engine, checkpoint) in LIMITED


def test_a_gguf_file_with_its_keys_does_what_the_flags_do():
    geometries = geometry_of(PLAIN)
    for strategy, options in (("linear", {}), ("ntk", {}), ("yarn", {"attention_factor": 1.3})):
        deployment = deploy("llama.cpp", PLAIN, strategy, options, geometries, 2048)
        assert not deployment.needs_file and not deployment.rope_freqs
        by_flags = dialects.from_llama_cpp(deployment.arguments, PLAIN)["all"].plan(2048)
        by_keys = dialects.from_llama_cpp([], PLAIN, deployment.keys)["all"].plan(2048)
        agree(by_flags, by_keys)
        agree(dict(plans(strategy, geometries, 2048, **options))["all"], by_keys)
    # most architectures read the ends of the ramp from flags alone
    deployment = deploy("llama.cpp", PLAIN, "yarn", {"beta_fast": 16.0}, geometries, 2048)
    assert deployment.with_file == ("--yarn-beta-fast", "16", "-c", "2048")
    assert not any("beta" in key for key in deployment.keys)


def test_flags_of_llama_cpp_are_read_as_it_computes():
    def read(line, **more):
        return dialects.from_llama_cpp(shlex.split(line), PLAIN, **more)["all"]

    agree(read("--rope-freq-scale 0.25").plan(2048), read("--rope-scale 4").plan(2048))
    yarn = "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 512"
    assert read(yarn).plan(2048).attention_factor == 0.1 * math.log(4) + 1
    # overwritten under yarn, and used without its mixture
    assert read(f"{yarn} --yarn-attn-factor 3").plan(2048).attention_factor == 0.1 * math.log(4) + 1
    interpolated = read(f"{yarn} --yarn-ext-factor 0 --yarn-attn-factor 3").plan(2048)
    assert interpolated.attention_factor == 3.0
    np.testing.assert_allclose(interpolated.inv_freq, np.array(read("").plan(2).inv_freq) / 4)
    doubled = read(f"{yarn} --override-kv llama.rope.scaling.attn_factor=float:2").plan(2048)
    assert doubled.attention_factor == pytest.approx(2 * (0.1 * math.log(4) + 1))
    # a list and a scale multiply
    listed = read(yarn, rope_freqs=RISING).plan(2048)
    np.testing.assert_allclose(listed.inv_freq, np.array(read(yarn).plan(2048).inv_freq) / RISING)
    assert read("--rope-scaling none --rope-scale 4").strategy == "none"
    with pytest.raises(
        ValueError, match=r"to stretch the context by 8, give --rope-scale 8 or --rope-freq-scale 0\.125"
    ):
        read("--rope-freq-scale 8")
    with pytest.raises(ValueError, match=r"--yarn-ext-factor 0\.5: no strategy mixes in this way; give 0 or 1"):
        read(f"{yarn} --yarn-ext-factor 0.5")
    with pytest.raises(ValueError, match=r"llama\.cpp's flags: .*invalid choice: 'dynamic'"):
        read("--rope-scaling dynamic")


def test_a_dynamic_strategy_is_deployed_for_one_length_with_a_note():
    geometries = geometry_of(PLAIN)
    for engine in ENGINES:
        notes = deploy(engine, PLAIN, "dynamic", {"over": "linear"}, geometries, 2048).notes
        assert len(notes) == 1 and "these are the frequencies of 2,048 tokens, for shorter ones too" in notes[0]
        notes = deploy(engine, PLAIN, "dynamic_ntk", {}, geometries, 2048).notes
        assert bool(notes) == (not engine.startswith("transformers"))  # which has the same
        assert not deploy(engine, PLAIN, "ntk", {}, geometries, 2048).notes
        assert not deploy(engine, PLAIN, "dynamic_ntk", {}, geometries, TRAINED).notes


def test_vllm_and_sglang_compute_their_dynamic_at_once():
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    overrides = {"rope_parameters": dynamic | {"max_trained_positions": 512}, "max_position_embeddings": 2048}
    assert vllm.read_overrides(overrides, PLAIN)["all"].options == {"factor": 13.0}
    assert vllm.read_overrides({"rope_parameters": dynamic}, PLAIN)["all"].strategy == "none"  # 4 * 1 - 3
    assert sglang.read_overrides({"rope_scaling": dynamic}, PLAIN)["all"].options == {"factor": 13.0}  # 4 * 4 - 3
    alpha = {"rope_type": "dynamic", "alpha": 1000.0, "rope_theta": 10_000.0}
    for deployment in (
        vllm.read_overrides({"rope_parameters": alpha}, PLAIN),
        sglang.read_overrides({"rope_scaling": alpha}, PLAIN),
    ):
        assert (deployment["all"].strategy, deployment["all"].options) == ("ntk", {"factor": 1000.0})


@pytest.mark.parametrize("checkpoint, strategy, options", [("plain", "yarn", {"factor": 2.0}), ("yarn", "none", {})])
def test_vllm_is_given_lists_where_its_table_of_yarn_would_end_too_soon(checkpoint, strategy, options):
    config = CHECKPOINTS[checkpoint]
    for length, rope_type in ((2 * TRAINED, "yarn"), (4 * TRAINED, "longrope")):
        length = length if checkpoint == "plain" else length // 2
        deployment = deploy("vllm", config, strategy, options, geometry_of(config), length)
        assert deployment.name == rope_type
        (read,) = ENGINES["vllm"].read_back(deployment, config).values()
        agree(plans(strategy, geometry_of(config), length, **options)[0][1], read.plan(length))


def test_exllama_computes_the_ramp_of_yarn_for_the_length_that_is_served():
    read = exllama.read_arguments(["-ry", "4", "-l", "2048"], PLAIN)["all"]
    assert read.options == {"factor": 4.0, "beta_fast": 8.0, "beta_slow": 0.25}
    deployment = deploy("exllama", PLAIN, "yarn", {"beta_fast": 8.0, "beta_slow": 0.25}, geometry_of(PLAIN), 2048)
    assert deployment.arguments == ("-ry", "4", "-l", "2048") and not deployment.needs_file
    with pytest.raises(ValueError, match="several scalings at once"):
        exllama.read_arguments(["-ra", "4", "-rs", "2"], PLAIN)


@pytest.mark.parametrize("strategy", [*sorted(CHANGES_ATTENTION), "per_layer"])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_frequencies_alone_cannot_express_is_refused_with_an_alternative(engine, strategy):
    options = {"layers": {"0": 2.0}} if strategy == "per_layer" else {}
    if engine in ("transformers", "vllm") and strategy == "temperature":
        options = {"smooth": True}  # in steps another class has it: tests/rope/test_relabel.py
    says = rf"{engine} does not support {strategy}.*; the closest supported alternative"
    with pytest.raises(Unsupported, match=says):
        deploy(engine, PLAIN, strategy, options, geometry_of(PLAIN), 2048)
    assert options.get("smooth") or support(strategy, engine) is None


GEMMA = PLAIN | {
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}


@pytest.mark.parametrize("strategy", ["none", "linear", "yarn", "ntk", "ntk_fixed", "dynamic_ntk"])
def test_layer_types_have_their_own_plans_where_the_engine_supports_it(strategy):
    geometries = geometry_of(GEMMA)
    expected = dict(plans(strategy, geometries, 2048))
    for engine in ("transformers", "transformers-v4", "vllm"):
        deployment = ENGINES[engine].read_back(deploy(engine, GEMMA, strategy, {}, geometries, 2048), GEMMA)
        assert set(deployment) == set(expected)
        for layer_type, plan in expected.items():
            agree(plan, deployment[layer_type].plan(2048))
    for engine in ("sglang", "exllama"):
        with pytest.raises(
            Unsupported,
            match=r"one rotary embedding.*this model has 2 .*; the closest supported alternative.* --to transformers",
        ):
            deploy(engine, GEMMA, strategy, {}, geometries, 2048)
    deployed = ENGINES["llama.cpp"].read_back(deploy("llama.cpp", GEMMA, strategy, {}, geometries, 2048), GEMMA)
    for layer_type, plan in expected.items():
        agree(plan, deployed[layer_type].plan(2048))


def test_overrides_go_to_the_part_of_a_config_that_is_the_language_models():
    outer = {"model_type": "llava", "text_config": dict(PLAIN)}
    for engine, flag in (("vllm", "--hf-overrides"), ("sglang", "--json-model-override-args")):
        deployment = deploy(engine, outer, "yarn", {}, geometry_of(outer), 2048)
        overrides = json.loads(deployment.arguments[deployment.arguments.index(flag) + 1])
        assert list(overrides) == ["text_config"] and overrides["text_config"]["max_position_embeddings"] == 2048
        (read,) = ENGINES[engine].read_back(deployment, outer).values()
        agree(dict(plans("yarn", geometry_of(outer), 2048))["all"], read.plan(2048))


@pytest.mark.parametrize("strategy", ["linear", "yarn", "ntk", "llama3", "truncated"])
def test_vllms_overrides_on_a_live_config_give_our_logits(strategy):
    """vLLM sets each override as an attribute of transformers' config, and has that standardised."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**PLAIN)).eval()
    deployment = deploy("vllm", PLAIN, strategy, {}, geometry_of(PLAIN), 2048)
    config = copy.deepcopy(model.config)
    for key, value in json.loads(deployment.arguments[deployment.arguments.index("--hf-overrides") + 1]).items():
        setattr(config, key, value)
    config.standardize_rope_params()
    config.validate_rope()
    served = LlamaForCausalLM(config).eval()
    served.load_state_dict(model.state_dict())
    ids = torch.arange(700)[None] * 7 % 96
    with torch.no_grad(), patched(model, plans(strategy, geometry_of(PLAIN), 2048)):
        torch.testing.assert_close(served(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_a_v4_config_is_read_alike_by_transformers_v5(tmp_path):
    for strategy in FREQUENCY_STRATEGIES:
        for options in settings_for_engines(strategy, PAIRS):
            old, new = (
                deploy(engine, PLAIN, strategy, options, geometry_of(PLAIN), 2048).config
                for engine in ("transformers-v4", "transformers")
            )
            assert "rope_parameters" not in old and "rope_theta" in old
            for name, config in (("old", old), ("new", new)):
                (tmp_path / name).mkdir(exist_ok=True)
                (tmp_path / name / "config.json").write_text(json.dumps(config))
            read = [AutoConfig.from_pretrained(tmp_path / name) for name in ("old", "new")]
            assert read[0].rope_parameters == read[1].rope_parameters
            assert read[0].max_position_embeddings == read[1].max_position_embeddings


def test_v4_finds_the_original_length_of_a_longrope_where_it_looks_for_it():
    config = CHECKPOINTS["longrope"]
    for length in (64, TRAINED, 2048):
        deployment = deploy("transformers-v4", config, "none", {}, geometry_of(config), length).config
        assert deployment["original_max_position_embeddings"] == 128
        # from max_position_embeddings, which grows, it would make another
        assert deployment["rope_scaling"]["attention_factor"] == math.sqrt(1 + math.log(4) / math.log(128))


def test_v4_ignores_an_original_length_within_a_longrope():
    """Attention factors as transformers 4.57.3 computes them: LlamaRotaryEmbedding.attention_scaling."""
    lists = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.5] * PAIRS, "long_factor": [4.0] * PAIRS}
    within = transformers_v4.read_config(PLAIN | {"rope_scaling": lists | ORIGINAL})["all"]
    beside = transformers_v4.read_config(PLAIN | ORIGINAL | {"rope_scaling": lists})["all"]
    assert within.plan(TRAINED).attention_factor == pytest.approx(1.1055415967851334, rel=1e-12)
    assert beside.plan(TRAINED).attention_factor == pytest.approx(1.1338934190276817, rel=1e-12)
    fast = [read.plan(TRAINED).inv_freq[0] for read in (within, beside)]
    assert fast == pytest.approx([1 / 1.5, 1 / 4.0], rel=1e-12)  # the short list up to 512, the long one from 128


def test_v4_refuses_what_is_new_in_v5():
    declared = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    config = {key: value for key, value in PLAIN.items() if "rope" not in key} | {"rope_parameters": declared}
    with pytest.raises(
        Unsupported, match=r"transformers-v4 does not support rope_type 'proportional'.*; the closest supported"
    ):
        deploy("transformers-v4", config, "linear", {}, geometry_of(config), 2048)
    for engine in ("vllm", "sglang"):
        with pytest.raises(
            Unsupported, match=r"does not support linear on Gemma 4's proportional layers.*; the closest supported"
        ):
            deploy(engine, config, "linear", {}, geometry_of(config), 2048)


def test_an_unknown_engine_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=re.escape(f"unknown engine: 'abacus'; engines: {', '.join(ENGINES)}")):
        deploy("abacus", PLAIN, "yarn", {}, geometry_of(PLAIN), 2048)


def test_the_page_on_deployment_holds_the_table_of_strategies_and_engines():
    """A strategy that is new in the working tree may lack its row; the warning has it."""
    header, _, *rows = support_table().splitlines()
    page = (PROJECT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert header in page, f"docs/deploy.md: write the table of engines anew:\n{support_table()}"
    table = page.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    wrong = [row for row in table if row not in rows]
    assert not wrong, "docs/deploy.md: these rows are not those of rope.dialects.support_table():\n" + "\n".join(wrong)
    if missing := [row for row in rows if row not in table]:
        warnings.warn("docs/deploy.md: add to the table of engines:\n" + "\n".join(missing), stacklevel=1)


def test_a_command_line_is_what_a_shell_takes():
    deployment = deploy("vllm", PLAIN, "linear", {}, geometry_of(PLAIN), 2048)
    arguments = shlex.split(deployment.command("vllm", "serve", "a folder"))
    assert arguments[:4] == ["vllm", "serve", "a folder", "--hf-overrides"] and arguments[-2:] == [
        "--max-model-len",
        "2048",
    ]
    assert json.loads(arguments[4]) == {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}


LATENT = PLAIN | {"model_type": "deepseek_v3", "qk_rope_head_dim": 32, "kv_lora_rank": 32, "head_dim": 32}
DEEPSEEK = LATENT | {
    "rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32} | ORIGINAL
}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_latent_attention_is_scaled_as_deepseeks_yarn_or_refused(engine):
    """These engines compute every rope_type of such a model as their own YaRN."""
    says = r"computes every scaling of a model with latent attention as DeepSeek's YaRN, which does not express"
    yarn = deploy(engine, LATENT, "yarn", {"beta_fast": 16.0}, geometry_of(LATENT), 2048)
    parameters = (yarn.config or {})["rope_parameters"]
    assert (parameters["rope_type"], parameters["mscale"], parameters["mscale_all_dim"]) == ("yarn", 1.0, 0.0)
    without = deploy(engine, LATENT, "by_parts", {"ramp": "index"}, geometry_of(LATENT), 2048).config or {}
    assert without["rope_parameters"]["mscale"] == 0.0 and "attention_factor" not in without["rope_parameters"]
    assert deploy(engine, LATENT, "ntk", {}, geometry_of(LATENT), 2048).name == "rope_theta"
    for strategy in ("llama3", "power", "by_parts", "truncated"):
        with pytest.raises(Unsupported, match=f"{says} {strategy}.*; the closest supported alternatives are "):
            deploy(engine, LATENT, strategy, {}, geometry_of(LATENT), 2048)
    assert deploy(engine, DEEPSEEK, "none", {}, geometry_of(DEEPSEEK), TRAINED).name == "yarn"
    for strategy in ("linear", "ntk", "yarn"):
        with pytest.raises(Unsupported, match=f"{says} {strategy}"):
            deploy(engine, DEEPSEEK, strategy, {}, geometry_of(DEEPSEEK), 2048)


def test_linear_on_latent_attention_is_a_yarn_without_extrapolation_where_the_engine_reads_that():
    parameters = (deploy("sglang", LATENT, "linear", {}, geometry_of(LATENT), 2048).config or {})["rope_parameters"]
    assert (parameters["extrapolation_factor"], parameters["mscale"]) == (0.0, 0.0)
    with pytest.raises(Unsupported, match="DeepSeek's YaRN, which does not express linear"):
        deploy("vllm", LATENT, "linear", {}, geometry_of(LATENT), 2048)


def test_cosines_of_latent_attention_end_in_vllm_and_go_on_in_sglang():
    with pytest.raises(Unsupported, match="cosines of this model end at 512 tokens"):
        deploy("vllm", DEEPSEEK, "none", {}, geometry_of(DEEPSEEK), 2048)
    assert deploy("sglang", DEEPSEEK, "none", {}, geometry_of(DEEPSEEK), 2048).name == "yarn"


UNSCALED = ["mixtral", "gemma", "gemma2", "olmo", "starcoder2", "phi", "stablelm", "granitemoe", "persimmon"]


@pytest.mark.parametrize("model_type", UNSCALED)
def test_sglang_is_given_a_base_where_its_model_file_reads_no_scaling(model_type):
    config = PLAIN | {"model_type": model_type}
    for strategy, options in (("ntk", {}), ("base", {"theta": 40_000.0}), ("none", {})):
        assert deploy("sglang", config, strategy, options, geometry_of(config), 2048).name in ("rope_theta", "default")
    for strategy in ("linear", "yarn", "llama3", "power", "ntk_fixed"):
        says = rf"SGLang's \w+ reads rope_theta and no scaling .*{strategy} would be served without; the closest"
        with pytest.raises(Unsupported, match=says):
            deploy("sglang", config, strategy, {}, geometry_of(config), 2048)


def test_llama_cpp_gets_no_smollm3_whose_layers_rotate_otherwise_than_its_constant_says():
    smollm3 = PLAIN | {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 4}
    for still, says in (([1, 1, 1, 0], ""), ([1, 0, 1, 0], "layer 1 of this model does not"), ([1] * 4, "layer 3 of")):
        config = smollm3 | {"no_rope_layers": still}
        for strategy in ("none", "yarn"):
            if not says:
                assert deploy("llama.cpp", config, strategy, {}, geometry_of(config), 131_072)
                continue
            with pytest.raises(Unsupported, match=f"rotates all but every fourth layer of smollm3.*{says}"):
                deploy("llama.cpp", config, strategy, {}, geometry_of(config), 131_072)
            assert deploy("vllm", config, strategy, {}, geometry_of(config), 131_072)


def test_neighbouring_pairs_get_no_longrope():
    config = PLAIN | {"model_type": "cohere"}
    for engine in ("vllm", "sglang"):
        assert deploy(engine, config, "yarn", {}, geometry_of(config), 2048).name == "yarn"
        with pytest.raises(Unsupported, match=r"rotates neighbouring pairs, for which .* has no longrope"):
            deploy(engine, config, "power", {}, geometry_of(config), 2048)


def test_vllm_computes_gpt_oss_as_yarn_whatever_the_config_says():
    own = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False} | ORIGINAL
    config = PLAIN | {"model_type": "gpt_oss", "rope_scaling": own}
    assert deploy("vllm", config, "none", {}, geometry_of(config), TRAINED).name == "yarn"
    for strategy in ("linear", "ntk", "power"):
        with pytest.raises(Unsupported, match="GptOssForCausalLM computes every scaling as YaRN"):
            deploy("vllm", config, strategy, {}, geometry_of(config), 2048)
    assert deploy("sglang", config, "power", {}, geometry_of(config), 2048).name == "longrope"


def test_sglang_is_told_the_attention_factor_of_a_longrope_that_it_would_take_from_the_length():
    config = CHECKPOINTS["longrope"]
    for length in (TRAINED, 2048):
        parameters = (deploy("sglang", config, "none", {}, geometry_of(config), length).config or {})["rope_parameters"]
        attention = math.sqrt(1 + math.log(4) / math.log(128))
        assert parameters["short_mscale"] == parameters["long_mscale"] == pytest.approx(attention, rel=1e-12)


def test_exllama_takes_any_attention_factor_from_an_original_length():
    longrope = CHECKPOINTS["longrope"] | {"original_max_position_embeddings": 128}
    for config, strategy, length in ((longrope, "none", TRAINED), (longrope, "none", 2048), (PLAIN, "yarn", 2048)):
        geometries = geometry_of(config)
        deployment = deploy("exllama", config, strategy, {}, geometries, length)
        assert deployment.name == "longrope"
        agree(plans(strategy, geometries, length)[0][1], exllama.read_back(deployment, config)["all"].plan(length))
    low = {"attention_factor": 0.9}
    with pytest.raises(Unsupported, match=r"attention factor below 1, and that of yarn is 0\.9; the closest"):
        deploy("exllama", PLAIN, "yarn", low, geometry_of(PLAIN), 2048)
    unknown = PLAIN | {"model_type": "olmo2"}
    with pytest.raises(Unsupported, match=r"ExLlamaV2 0\.3\.2 does not have the architecture Olmo2ForCausalLM"):
        deploy("exllama", unknown, "linear", {}, geometry_of(unknown), 2048)


FAMILIES = [PLAIN, LATENT, DEEPSEEK, GEMMA, *(PLAIN | {"model_type": name} for name in ("mixtral", "cohere", "phi3"))]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_refusal_names_can_be_had(engine):
    tried = 0
    for config in FAMILIES:
        geometries = geometry_of(config)
        attention = () if config is GEMMA else ("self_extend",)
        for strategy in ("none", "linear", "yarn", "llama3", "power", "truncated", *attention):
            try:
                deploy(engine, config, strategy, {}, geometries, 2048)
            except Unsupported as refusal:
                _, found, named = str(refusal).rpartition("the closest supported alternative")
                assert found or "use a live model" in str(refusal)
                for alternative in re.sub(r"^\S* (is|are) |^s are ", "", named).split(" and ") if found else ():
                    elsewhere = alternative.startswith("--to ")
                    other = alternative.removeprefix("--to ") if elsewhere else engine
                    deploy(other, config, strategy if elsewhere else alternative, {}, geometries, 2048)
                    tried += 1
    assert tried > 5

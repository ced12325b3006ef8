"""What stretching must beat: the plain model that sees only the last tokens, of the text or of its cache."""

from __future__ import annotations

from rope.cropping import Cropped
from rope.geometry import Geometry, Plan, check_integer
from rope.pairwise import OWN, Pairwise, Position, Region
from rope.strategies.registry import strategy


@strategy(examples=({"stride": 256},), crops_text=True)
def crop(geometry: Geometry, length: int, *, stride: int | None = None) -> Plan:
    """Cropping: nothing is stretched; the model sees only the last trained_length tokens of the same text.

    The tokens that are scored stay the same. Of a text that is scored throughout, windows of trained_length tokens move
    by `stride`, and each scores what none before it did: a token sees more than trained_length - stride tokens.

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        stride: tokens from one window to the next; at least 1, at most trained_length. None: half of trained_length.

    Returns:
        Cropped over the native frequencies; the native plan itself up to the trained length.

    Raises:
        ValueError: an argument outside these domains.

    Source:
        the sliding windows of Press et al. 2022, https://arxiv.org/abs/2108.12409
    """
    native, trained = geometry.native(length), geometry.trained_length
    check_integer("stride", 1 if stride is None else stride, least=1)
    if stride is not None and stride > trained:
        raise ValueError(f"stride={stride}: give at most the trained length, {trained}, or tokens are left out")
    if length <= trained:
        return native
    native = geometry.native(trained)
    stride = trained // 2 if stride is None else stride
    return Cropped(native.inv_freq, native.attention_factor, trained, stride)


@strategy(examples=({"sinks": 1}, {"window": 20}), changes_attention=True)
def streaming(geometry: Geometry, length: int, *, sinks: int = 4, window: int | None = None) -> Plan:
    """StreamingLLM: a token sees the first tokens (attention sinks) and those in a window before it, all else is gone.

    distance(m, n) = m - n                        where m - n <= window
                   = min(m, sinks + window) - n   where n < sinks
    any other n is not seen: positions are those within a cache of sinks + window tokens

    Args:
        geometry: what the checkpoint was trained with.
        length: tokens of context; at least 2.
        sinks: tokens at the beginning that are always seen (start_size of the authors' code); at least 0.
        window: tokens before a token that it sees (recent_size); at least 1. None: trained_length - sinks - 1, so that
            no position is beyond those that were trained.

    Returns:
        Pairwise over the native frequencies; the native plan itself while the cache holds all tokens.

    Raises:
        ValueError: an argument outside these domains, or no room for a window beside the sinks.

    Source:
        Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks, https://arxiv.org/abs/2309.17453;
        mit-han-lab/streaming-llm, kv_cache.py and pos_shift (start_size 4)
    """
    native = geometry.native(length)
    check_integer("sinks", sinks, least=0)
    if window is None:
        window = geometry.trained_length - sinks - 1
        if window < 1:
            raise ValueError(
                f"sinks={sinks} leave no room in the {geometry.trained_length} trained positions: give at most "
                f"{geometry.trained_length - 2}, or a window"
            )
    check_integer("window", window, least=1)
    if length <= sinks + window + 1:
        return native
    near = Region(0, window + 1, OWN, OWN)
    first = Region(window + 1, None, Position(limit=float(sinks + window)), OWN, limit=sinks)
    return Pairwise(native.inv_freq, native.attention_factor, (near, first) if sinks else (near,))

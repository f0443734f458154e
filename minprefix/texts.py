"""From texts to the ids a model reads, and back: the input format of the paper, for training and for
decoding.
"""

from minprefix.checks import InputError
from minprefix.generate import check_ids, generate


def encode_source(lm, tokenizer, source: str, limit: int = 0, frame: str = "") -> list[int]:
    """What stands before y: for GPT-2 ids(x), BOS, which separates the two; for BART BOS, ids(x), EOS.

    x is cut so that all of it is at most `limit` tokens; 0 cuts nothing. frame: words around x, which stands
    in the place of their {}, and nothing else is added or cut.
    """
    if frame:
        return tokenizer.encode(frame.replace("{}", source))
    return cut(lm, tokenizer, source, limit, is_target=False)


def encode_target(lm, tokenizer, target: str, limit: int = 0) -> list[int]:
    """What the loss is over: ids(" " + y), EOS; for BART BOS, ids(y), EOS; cut as a source is."""
    return cut(lm, tokenizer, lm.begins + target, limit, is_target=True)


def cut(lm, tokenizer, text: str, limit: int, is_target: bool) -> list[int]:
    """The framed ids, of which so many are kept that all are `limit`.

    InputError if that leaves none, or if the model has no tokens for the frame.
    """
    frame = lm.frame([], is_target)
    if 0 < limit <= len(frame):
        raise InputError(f"texts cannot be cut to {limit} tokens: give more, or 0 to cut nothing")
    check_ids("a text's frame (bos_token_id, eos_token_id)", frame, lm.config)
    ids = tokenizer.encode_first(text, limit - len(frame)) if limit else tokenizer.encode(text)
    return lm.frame(ids, is_target)


def newline_ids(tokenizer) -> tuple[int, ...]:
    """The tokens that contain a line break: the paper's decoding bans them."""
    return tuple(id for id, token in tokenizer.bytes_of_id.items() if b"\n" in token)


def generate_texts(
    lm, tokenizer, sources: list, prefix, decoding: dict, max_source=0, ensemble=False, frame=""
) -> list[str]:
    """One line of text for each source, a text or what encode_source makes of one; prefix and decoding as of
    `generate`; max_source cuts the texts.

    In a frame, which has no token for the end of y, that is the end of its line.
    """
    ids = [x if isinstance(x, list) else encode_source(lm, tokenizer, x, max_source, frame) for x in sources]
    banned = () if frame else newline_ids(tokenizer)
    outputs = generate(lm, ids, prefix, ensemble=ensemble, banned=banned, **decoding)
    texts = ([token for token in tokens if token not in tokenizer.special_ids] for tokens in outputs)
    return [tokenizer.decode(tokens).strip().partition("\n")[0] for tokens in texts]

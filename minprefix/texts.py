"""From texts to the ids a model reads, and back: the input format of the paper, for training and for
decoding.
"""

from minprefix.bart import BART
from minprefix.generate import generate


def encode_source(lm, tokenizer, source: str) -> list[int]:
    """What stands before y: for GPT-2 ids(x), BOS, which separates the two; for BART BOS, ids(x), EOS."""
    ids, config = tokenizer.encode(source), lm.config
    if isinstance(lm, BART):
        return [config.bos_token_id, *ids, config.eos_token_id]
    return [*ids, config.bos_token_id]


def encode_target(lm, tokenizer, target: str) -> list[int]:
    """What the loss is over: ids(" " + y), EOS; for BART BOS, ids(y), EOS.

    BART's decoder starts from EOS and was trained to say BOS next, so its fine-tuning (and transformers'
    labels) keep BOS as y's first token; generation may force it.
    """
    if isinstance(lm, BART):
        return encode_source(lm, tokenizer, target)
    return [*tokenizer.encode(" " + target), lm.config.eos_token_id]


def newline_ids(tokenizer) -> tuple[int, ...]:
    """The tokens that contain a line break: the paper's decoding bans them."""
    return tuple(id for id, token in tokenizer.bytes_of_id.items() if b"\n" in token)


def generate_texts(lm, tokenizer, sources: list[str], prefix, options: dict) -> list[str]:
    """One line of text for each source; prefix and options as of `generate`."""
    ids = [encode_source(lm, tokenizer, source) for source in sources]
    outputs = generate(lm, ids, prefix, banned=newline_ids(tokenizer), **options)
    texts = ([token for token in tokens if token not in tokenizer.special_ids] for tokens in outputs)
    return [tokenizer.decode(tokens).strip() for tokens in texts]

"""Decoding: greedy, sampling, and beam search with length normalisation as a tree in one row of the cache."""

import math
import random
import reprlib
from collections import Counter
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from minprefix.cache import Cache, pad_right, stack_prefixes
from minprefix.checks import STRICT, InputError, build

NEVER = -1e9  # the score of a beam that does not exist yet
Early = bool | Literal["never"] | None  # as in transformers; "never": not while a longer text could win


@dataclass(frozen=True, config=STRICT)
class Decoding:
    """How to decode. Options are declared here and nowhere else: `generate` takes these fields as keywords,
    train.py as key=value, sample.py as flags, and a .pt file holds those of its training. The defaults are
    the paper's; None is where the authors leave it to the checkpoint.
    """

    beams: int = Field(5, ge=1, le=1000, description="of the beam search; 1 is greedy")
    length_penalty: float = Field(1.0, ge=-20, le=20, description="alpha in sum log p / |y|^alpha")
    max_new_tokens: int = Field(100, ge=1, le=2**20, description="longest text")
    min_new_tokens: int = Field(0, ge=0, le=2**20, description="shortest text")
    no_repeat_ngram_size: int | None = Field(None, ge=0, description="no n-gram twice; 0: any; None: model's")
    early_stopping: Early = Field(None, description="end at K finished beams; None: as the model")
    sample: bool = Field(False, description="draw from the distribution instead of searching")
    temperature: float = Field(1.0, ge=1e-6, le=1e6, description="of a draw: above 1 flatter than the model")
    top_k: int = Field(0, ge=0, description="draw from the K likeliest tokens; 0: from all")
    top_p: float = Field(1.0, ge=1e-6, le=1, description="draw from the likeliest tokens of mass P; 1: all")
    seed: int = Field(0, ge=0, lt=2**63, description="of draws; in a training of all that is random")

    def __post_init__(self):
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(f"min_new_tokens is {self.min_new_tokens}: it must not be above max_new_tokens")
        if self.sample and self.beams > 1:
            raise InputError("sampling draws one text a source: set beams to 1")
        if not self.sample and (self.temperature, self.top_k, self.top_p) != (1, 0, 1):
            raise InputError("temperature, top_k and top_p shape a draw: set sample too")


@torch.inference_mode()
def generate(
    lm,
    sources: list[list[int]],
    prefix=None,
    *,
    ensemble: bool = False,
    banned: tuple[int, ...] | list[int] = (),
    batch_size: int = 32,
    **decoding: int | float | bool,
) -> list[list[int]]:
    """Continues each source -> its generated ids, EOS cut, in the order of the sources.

    sources: GPT-2 continues them as they are, BART encodes them (texts.encode_source adds what either needs).
    prefix: a SavedPrefix for all rows, or a list with one (or None) for each row, of any lengths and methods.
    ensemble: all prefixes of the list answer every source together, by the mean of their distributions.
    banned: ids that are never generated. decoding: the fields of Decoding, with its defaults.
    Hypotheses are ranked by sum log p / |y|^length_penalty (Sec. 5.3), |y| counting the EOS. What the
    checkpoint's own files say of generation is obeyed as far as load_lm does not warn of it. To n-grams y
    begins with the token that it goes on from (transformers counts all of x to y in GPT-2, and not in BART).
    InputError when an argument makes no sense, a row does not fit the position table, or a prefix holds
    numbers that the model cannot compute with.
    """
    if not isinstance(sources, list) or type(batch_size) is not int or batch_size < 1:
        raise InputError("sources must be a list of lists of ids, and batch_size a number from 1 on")
    check_ids("banned", banned, lm.config)
    left = [name for name in ("no_repeat_ngram_size", "early_stopping") if decoding.get(name) is None]
    options = build(Decoding, decoding | {name: getattr(lm.config, name) for name in left})
    banned = [*banned, *(id for id in lm.config.suppress_tokens if id < lm.config.vocab_size)]
    if len(set(banned)) >= lm.config.vocab_size:
        raise InputError("banned holds every id of the vocabulary: leave some to write with")
    members = assign_prefixes(prefix, len(sources), ensemble)
    for prefixes in zip(*members):
        check_rows(lm, sources, prefixes, options.max_new_tokens)
    draws = seed_draws(sources, members, options.seed)
    banned = torch.tensor(banned, dtype=torch.long, device=lm.wte.weight.device)
    outputs: list[list[int]] = [[] for _ in sources]
    by_length = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    for start in range(0, len(sources), batch_size):
        rows = by_length[start : start + batch_size]
        cache, ids = prefill(lm, [sources[row] for row in rows], [members[row] for row in rows])
        if options.beams == 1:
            found = decode_tokens(lm, cache, ids, options, banned, [draws[row] for row in rows])
        else:
            found = search_beams(lm, cache, ids, options, banned)
        for row, tokens in zip(rows, found):
            outputs[row] = tokens
    return outputs


def check_ids(what: str, ids: object, config) -> None:
    """InputError for anything else than ids that the model has."""
    known = range(config.vocab_size)
    if not isinstance(ids, list | tuple) or not all(type(id) is int and id in known for id in ids):
        raise InputError(f"{what} is {reprlib.repr(ids)}: it must be a list of ids below {len(known)}")


def list_ends(config) -> list[int]:
    """The tokens that end a text, of those that the model has."""
    return [id for id in (config.eos_token_id, *config.further_ends) if id < config.vocab_size]


def assign_prefixes(prefix, count: int, ensemble: bool) -> list[list]:
    """The prefixes that answer each of `count` sources: one of its own, or all members of an ensemble."""
    is_list = isinstance(prefix, list | tuple)
    if ensemble:
        if not is_list or not prefix:
            raise InputError("an ensemble needs a list of prefixes: give at least one")
        return [list(prefix)] * count
    rows = list(prefix) if is_list else [prefix] * count
    if len(rows) != count:
        raise InputError(f"{len(rows)} prefixes for {count} sources: give one, or one for each source")
    return [[one] for one in rows]


def check_rows(lm, sources: list[list[int]], prefixes: list, max_new_tokens: int) -> None:
    """InputError for the first row that cannot be continued, counted from 1."""
    for prefix in {id(prefix): prefix for prefix in prefixes if prefix is not None}.values():
        check_base(prefix, lm)
        if not prefix.sites:
            raise InputError(f"method {prefix.method} has no prefix: apply_tensors(lm, it), and give None")
    for number, (source, prefix) in enumerate(zip(sources, prefixes), 1):
        check_ids(f"source {number}", source, lm.config)
        if not source:
            raise InputError(f"source {number} is empty: give at least one token")
        length = sum(map(len, prefix.sites.values())) if prefix else 0
        check_length(lm, f"source {number}", length, len(source), max_new_tokens)


def check_length(lm, what: str, prefix: int, source: int, target: int) -> None:
    """InputError if |P| + |x| + |y| positions are more than the model has."""
    whole = lm.positions == "shifted"  # all three share a table; else source and target have one each
    needed, most = prefix + source + target if whole else max(source, target), lm.config.n_positions
    if needed > most:
        lengths = f"prefix {prefix}, source {source}, target up to {target}"
        raise InputError(f"{what} needs {needed} positions ({lengths}), the model has {most}: shorten one")


def check_base(prefix, lm) -> None:
    """InputError if a prefix was trained on another model: its fingerprint or shapes do not fit."""
    if not hasattr(prefix, "base"):
        raise InputError(f"a prefix is {reprlib.repr(prefix)}: give what load_prefix returns, or None")
    base, config, widths = prefix.base, lm.config, lm.site_widths()
    fits = prefix.positions == lm.positions
    fits &= all(P_theta.shape[1] == widths.get(site) for site, P_theta in prefix.sites.items())
    if base["fingerprint"]:
        fits &= base["fingerprint"] == config.fingerprint
    else:  # a PEFT folder's is unknown; the plus marks what apply_tensors changed
        fits &= not prefix.tensors and "+" not in config.fingerprint
        fits &= all(getattr(config, key, value) == value for key, value in base["config"].items())
    if not fits:
        was = f"{base['name']!r} ({base['fingerprint'] or 'unknown'}, {prefix.positions} positions)"
        now = f"{config.name!r} ({config.fingerprint or 'none'}, {lm.positions} positions)"
        raise InputError(f"the prefix was trained on {was} and does not fit {now}: pass --model with its own")


def prefill(lm, sources: list[list[int]], members: list[list]) -> tuple[Cache, Tensor]:
    """Reads each source with each of its M prefixes -> the cache of these B·M rows, and the token that each
    source goes on from (B, 1).
    """
    device = lm.wte.weight.device
    halves = [lm.split(source) for source in sources]
    x, mask = pad_right([x for (x, _), prefixes in zip(halves, members) for _ in prefixes])  # (B·M, T)
    prefixes = gather_prefixes([prefix for prefixes in members for prefix in prefixes])
    cache = lm.read(x.to(device), mask.to(device), prefixes)
    return cache, torch.tensor([start for _, start in halves], device=device)


def gather_prefixes(prefixes: list) -> dict[str, tuple[Tensor, Tensor | None]]:
    """For each site that some row uses: P_theta and its mask; one copy where all rows share one prefix."""
    rows = [prefix.sites if prefix else {} for prefix in prefixes]
    if all(sites is rows[0] for sites in rows):
        return {site: (P_theta, None) for site, P_theta in rows[0].items()}
    widths = {site: P_theta.shape[1] for sites in rows for site, P_theta in sites.items()}
    return {site: stack_prefixes([sites.get(site) for sites in rows], widths[site]) for site in widths}


def predict(lm, ids: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) of what follows ids (B, T); of an ensemble, whose M members are adjacent rows of the
    cache, log-probabilities. And the largest logit, for `check_finite` when the tokens are read.
    """
    M = len(cache.real) // len(ids)
    logits = lm.logits(lm.hidden(ids.repeat_interleave(M, 0), cache)).float()  # (B·M, T, V)
    peak = logits.amax()
    if M == 1:
        return logits, peak
    log_p = logits.log_softmax(-1).unflatten(0, (-1, M))  # (B, M, T, V)
    # Sec. 8: p(z_{i+1}) = 1/M sum_m p_m(z_{i+1}), the mean of the members' distributions
    return log_p.logsumexp(1) - math.log(M), peak


def check_finite(peak: Tensor) -> None:
    """InputError unless the largest logit is a number. To look at it is to wait for a GPU."""
    if not peak < torch.inf:  # nor is NaN
        raise InputError("the numbers of a prefix or the model are too large: its logits are not finite")


def seed_draws(sources: list[list[int]], members: list[list], seed: int) -> list[random.Random]:
    """What each source draws with. Its numbers follow from the seed, its ids and how often its prefixes had
    it before, not from who else asks.
    """
    asked: Counter = Counter()
    draws = []
    for source, prefixes in zip(sources, members):
        key = (*source, *map(id, prefixes))
        draws.append(random.Random(f"{seed} {source} {asked[key]}"))
        asked[key] += 1
    return draws


def decode_tokens(
    lm, cache: Cache, ids: Tensor, options: Decoding, banned: Tensor, draws: list[random.Random]
) -> list[list[int]]:
    """One token a step and row, the likeliest or a drawn one; rows that end leave the batch."""
    outputs: list[list[int]] = [[] for _ in ids]
    rows, M, ends = list(range(len(ids))), len(cache.real) // len(ids), list_ends(lm.config)
    tokens = ids  # (B, 1 + what is generated)
    for _ in range(options.max_new_tokens):
        logits, peak = predict(lm, tokens[:, -1:], cache)  # (B, 1, V)
        logits = constrain(logits[:, 0], tokens, lm.config, options, banned)
        u = [draws[row].random() for row in rows]
        ids = draw(logits, options, u) if options.sample else logits.argmax(-1)[:, None]  # (B, 1)
        tokens, chosen = torch.cat((tokens, ids), 1), ids[:, 0].tolist()
        check_finite(peak)
        going = [i for i, token in enumerate(chosen) if token not in ends]
        for i in going:
            outputs[rows[i]].append(chosen[i])
        if not going:
            break
        if len(going) < len(rows):
            cache = cache[[M * i + member for i in going for member in range(M)]]
            rows, tokens = [rows[i] for i in going], tokens[going]
    return outputs


def search_beams(lm, cache: Cache, ids: Tensor, options: Decoding, banned: Tensor) -> list[list[int]]:
    """The best of K beams for each row: they share the row's prefix and source, a step appends K slots.

    The M members of an ensemble are rows of the cache that go through the same beams.
    """
    B, K, M, ends = len(ids), options.beams, len(cache.real) // len(ids), ids.new_tensor(list_ends(lm.config))
    rows = list(range(B))
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in rows]
    tokens = ids[:, None].expand(-1, K, -1)  # (B, K, 1 + length): what y goes on from, and y
    scores = torch.full((B, K), NEVER, device=ids.device)
    scores[:, 0] = 0.0  # one beam exists so far, or all would propose the same
    logits, peak = predict(lm, ids, cache)
    logits = logits.expand(-1, K, -1)  # (B, K, V)
    cache.branch(K)
    for length in range(1, options.max_new_tokens + 1):
        log_p = constrain(logits.log_softmax(-1), tokens, lm.config, options, banned)  # (B, K, V)
        count = max(2, 1 + len(ends)) * K  # so that K can go on, whatever ends
        best, parents, token = propose(scores[:, :, None] + log_p, count)  # (B, count)
        grown = torch.cat((tokens.take_along_dim(parents[:, :, None], 1), token[:, :, None]), 2)
        is_end, is_last = torch.isin(token, ends), length == options.max_new_tokens
        alpha = length**options.length_penalty
        for row, *found in zip(rows, best[:, :K].tolist(), is_end[:, :K].tolist(), grown[:, :K].tolist()):
            keep_finished(finished[row], K, alpha, found, is_last)
        check_finite(peak)
        scores, running = (best + is_end * NEVER).topk(K)  # (B, K)
        tokens = grown.take_along_dim(running[:, :, None], 1)  # (B, K, 1 + length)
        cache.follow(parents.gather(1, running).repeat_interleave(M, 0))
        longest = options.max_new_tokens if options.early_stopping == "never" else length
        hopes = (scores[:, 0] / max(alpha, longest**options.length_penalty)).tolist()
        going = [i for i, row in enumerate(rows) if can_improve(finished[row], hopes[i], options)]
        if not going or is_last:
            break
        if len(going) < len(rows):
            cache = cache[[M * i + member for i in going for member in range(M)]]
            scores, tokens, rows = scores[going], tokens[going], [rows[i] for i in going]
        logits, peak = predict(lm, tokens[:, :, -1], cache)  # (B, K, V)
    return [hypotheses[0][1] if hypotheses else [] for hypotheses in finished]


def propose(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations by scores (B, K, V) -> their scores, parent beams and tokens (B, count)."""
    best, flat = scores.flatten(1).topk(count)
    return best, flat // scores.shape[-1], flat % scores.shape[-1]


def keep_finished(finished: list, K: int, alpha: float, candidates: list, is_last: bool) -> None:
    """Adds what ended among the best K candidates, and keeps the best K ever, the best first."""
    for log_p, is_end, tokens in zip(*candidates):
        if (is_end or is_last) and log_p > NEVER:
            # Sec. 5.3: sum log p / |y|^alpha; |y| counts the EOS, the returned tokens do not hold it
            finished.append((log_p / alpha, tokens[1:-1] if is_end else tokens[1:]))
    finished.sort(key=lambda hypothesis: -hypothesis[0])
    del finished[K:]


def can_improve(finished: list, hope: float, options: Decoding) -> bool:
    """Whether the best running beam, with the score that it hopes for, would beat the worst of K finished."""
    return len(finished) < options.beams or (options.early_stopping is not True and hope > finished[-1][0])


def constrain(scores: Tensor, tokens: Tensor, config, options: Decoding, banned: Tensor) -> Tensor:
    """Scores (..., V) with what may not come behind tokens (..., 1 + generated) at -inf."""
    generated = tokens.shape[-1] - 1
    scores[..., banned] = -torch.inf
    if generated < options.min_new_tokens:
        scores[..., list_ends(config)] = -torch.inf
    if 0 < options.no_repeat_ngram_size <= tokens.shape[-1]:
        forbid_repeats(scores, tokens, options.no_repeat_ngram_size)
    steps = {"forced_bos_token_id": 0, "forced_eos_token_id": options.max_new_tokens - 1}
    for name, step in steps.items():
        if generated == step and (forced := getattr(config, name, None)) is not None:
            scores.fill_(-torch.inf)[..., forced] = 0.0
    return scores


def forbid_repeats(scores: Tensor, tokens: Tensor, n: int) -> None:
    """Puts what would complete an n-gram that tokens (..., T) already hold at -inf."""
    windows = tokens.unfold(-1, n, 1)  # (..., T - n + 1, n)
    start = tokens[..., tokens.shape[-1] - n + 1 :]  # (..., n - 1): of the n-gram that is next
    seen = (windows[..., :-1] == start[..., None, :]).all(-1)  # (..., T - n + 1)
    scores.scatter_add_(-1, windows[..., -1], torch.where(seen, -torch.inf, 0.0))


def draw(logits: Tensor, options: Decoding, u: list[float]) -> Tensor:
    """The token of each row (B, 1) on which its u from [0, 1) falls, of the top_k likeliest and of these
    the fewest that hold top_p.
    """
    logits, token = (logits / options.temperature).sort(descending=True)  # (B, V)
    if options.top_k:
        logits[:, options.top_k :] = -torch.inf
    p = logits.softmax(-1)
    p[p.cumsum(-1) - p >= options.top_p] = 0  # never the likeliest: nothing comes before it
    ends = p.double().cumsum(-1)  # (B, V): token v has the part of [0, 1) between the ends of v - 1 and v
    # Double, as random's numbers are: in float32 the largest would be 1.
    places = torch.searchsorted(ends, ends.new_tensor(u)[:, None] * ends[:, -1:], right=True)  # (B, 1)
    return token.gather(1, places.clamp(max=ends.shape[-1] - 1))  # of a row of NaN, the last one

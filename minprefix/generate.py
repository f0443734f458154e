"""Decoding: greedy, sampling, and beam search with length normalisation as a tree in one row of the cache."""

import math
import random
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from minprefix.cache import Cache, pad_right, stack_prefixes
from minprefix.errors import InputError, check_range

NEVER = -1e9  # the score of a beam that does not exist yet
RANGES = {  # an option -> what it may be at least and at most
    "beams": (1, 1000),
    "max_new_tokens": (1, math.inf),
    "min_new_tokens": (0, math.inf),
    "length_penalty": (-20, 20),
    "temperature": (1e-6, math.inf),
    "top_k": (0, math.inf),  # 0: no limit
    "top_p": (1e-6, 1),
    "no_repeat_ngram_size": (0, math.inf),  # 0: no limit
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class Options:
    """How to decode; senseless combinations are refused here and nowhere else."""

    beams: int
    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    banned: tuple[int, ...]
    seed: int
    no_repeat_ngram_size: int = 0
    early_stopping: bool = False
    forced_first: int | None = None
    forced_last: int | None = None

    def __post_init__(self):
        for name, (least, most) in RANGES.items():
            check_range(name, getattr(self, name), least, most)
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
    beams: int = 5,
    max_new_tokens: int = 100,
    min_new_tokens: int = 0,
    length_penalty: float = 1.0,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    banned: tuple[int, ...] = (),
    no_repeat_ngram_size: int = 0,
    early_stopping: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    ensemble: bool = False,
) -> list[list[int]]:
    """Continues each source -> its generated ids, EOS cut, in the order of the sources.

    sources: GPT-2 continues them as they are, BART encodes them (texts.encode_source adds what either needs).
    prefix: a SavedPrefix for all rows, or a list with one (or None) for each row, of any lengths and methods.
    ensemble: all prefixes of the list answer every source together, by the mean of their distributions.
    beams=1 is greedy, or draws from softmax(logits / temperature) with sample=True; top_k=0 and top_p=1 cut
    nothing. Hypotheses are ranked by sum log p / |y|^length_penalty (Sec. 5.3), |y| counting the EOS.
    `banned` ids are never generated, nor is an n-gram a second time within y; the first and last token are
    those that a BART's config forces. early_stopping ends a source at its `beams`-th hypothesis.
    InputError when an option makes no sense or a row does not fit the position table.
    """
    limits = (max_new_tokens, min_new_tokens, length_penalty)
    forced = [getattr(lm.config, f"forced_{end}_token_id", None) for end in ("bos", "eos")]  # not in GPT-2
    cuts = (tuple(banned), seed, no_repeat_ngram_size, early_stopping)
    options = Options(beams, *limits, sample, temperature, top_k, top_p, *cuts, *forced)
    members = assign_prefixes(prefix, len(sources), ensemble)
    for prefixes in zip(*members):
        check_rows(lm, sources, prefixes, max_new_tokens)
    noise = make_noise(sources, members, options)
    outputs: list[list[int]] = [[] for _ in sources]
    by_length = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    for start in range(0, len(sources), batch_size):
        rows = by_length[start : start + batch_size]
        cache, ids = prefill(lm, [sources[row] for row in rows], [members[row] for row in rows])
        cache.in_place = True
        if beams == 1:
            found = decode_tokens(lm, cache, ids, options, noise[rows])
        else:
            found = search_beams(lm, cache, ids, options)
        for row, tokens in zip(rows, found):
            outputs[row] = tokens
    return outputs


def assign_prefixes(prefix, count: int, ensemble: bool) -> list[list]:
    """The prefixes that answer each of `count` sources: one of its own, or all members of an ensemble."""
    is_list = isinstance(prefix, list | tuple)
    if ensemble and not (is_list and prefix):
        raise InputError("an ensemble needs a list of prefixes: give at least one")
    if not ensemble and is_list and len(prefix) != count:
        raise InputError(f"{len(prefix)} prefixes for {count} sources: give one, or one for each source")
    if ensemble:
        return [list(prefix)] * count
    return [[one] for one in prefix] if is_list else [[prefix]] * count


def check_rows(lm, sources: list[list[int]], prefixes: list, max_new_tokens: int) -> None:
    """InputError for the first row that cannot be continued, counted from 1."""
    for prefix in {id(prefix): prefix for prefix in prefixes if prefix is not None}.values():
        check_base(prefix, lm)
        if not prefix.sites:
            raise InputError(f"method {prefix.method} has no prefix: apply_tensors(lm, it), and give None")
    for number, (source, prefix) in enumerate(zip(sources, prefixes), 1):
        if not source:
            raise InputError(f"source {number} is empty: give at least one token")
        length = sum(len(P_theta) for P_theta in prefix.sites.values()) if prefix else 0
        check_length(lm, f"source {number}", length, len(source), max_new_tokens)


def check_length(lm, what: str, prefix: int, source: int, target: int) -> None:
    """InputError if |P| + |x| + |y| positions are more than the model has."""
    needed = lm.count_positions(prefix, source, target)
    if needed > lm.config.n_positions:
        raise InputError(
            f"{what} needs {needed} positions (prefix {prefix}, source {source}, target "
            f"up to {target}), but the model has {lm.config.n_positions}: shorten one of them"
        )


def check_base(prefix, lm) -> None:
    """InputError if a prefix was trained on another model: its fingerprint or shapes do not fit."""
    widths = lm.site_widths()
    fits = all(P_theta.shape[1] == widths.get(site) for site, P_theta in prefix.sites.items())
    given, needed = lm.config.fingerprint, prefix.base["fingerprint"]
    if needed != given:  # a PEFT folder's is unknown; the plus marks what apply_tensors changed
        fits &= not needed and not prefix.tensors and "+" not in given
    if not needed:
        fits &= all(getattr(lm.config, key, None) == value for key, value in prefix.base["config"].items())
    if not fits:
        raise InputError(
            f"the prefix was trained on {prefix.base['name']!r} (fingerprint {needed or 'unknown'}) and does "
            f"not fit {lm.config.name!r} ({given or 'none'}): pass --model with the model it was trained on"
        )
    if prefix.positions != lm.positions:
        raise InputError(
            f"the prefix was trained with {prefix.positions!r} positions, not this model's {lm.positions!r}: "
            "train it again"
        )


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
    if prefixes[0] is not None and all(prefix is prefixes[0] for prefix in prefixes):
        return {site: (P_theta, None) for site, P_theta in prefixes[0].sites.items()}
    widths = {site: P.shape[1] for prefix in prefixes if prefix for site, P in prefix.sites.items()}
    return {
        site: stack_prefixes([prefix.sites.get(site) if prefix else None for prefix in prefixes], width)
        for site, width in widths.items()
    }


def predict(lm, ids: Tensor, cache: Cache) -> Tensor:
    """Logits (B, T, V) of what follows ids (B, T); of an ensemble, whose M members are adjacent rows of the
    cache, log-probabilities.
    """
    M = len(cache.real) // len(ids)
    logits = lm.logits(lm.hidden(ids.repeat_interleave(M, 0), cache)).float()  # (B·M, T, V)
    if M == 1:
        return logits
    log_p = logits.log_softmax(-1).unflatten(0, (-1, M))  # (B, M, T, V)
    # Sec. 8: p(z_{i+1}) = 1/M sum_m p_m(z_{i+1}), the mean of the members' distributions
    return log_p.logsumexp(1) - math.log(M)


def make_noise(sources: list[list[int]], members: list[list], options: Options) -> Tensor:
    """Numbers from [0, 1), one for each source and token (B, max_new_tokens). A source's follow from the
    seed, its ids and how often its prefixes had it before, not from who else asks.
    """
    asked: Counter = Counter()
    noise = []
    for source, prefixes in zip(sources, members):
        key = (*source, *map(id, prefixes))
        numbers = random.Random(f"{options.seed} {source} {asked[key]}")
        noise.append([numbers.random() for _ in range(options.max_new_tokens)])
        asked[key] += 1
    return torch.tensor(noise, dtype=torch.float64)  # in float32 the largest would be 1


def decode_tokens(lm, cache: Cache, ids: Tensor, options: Options, noise: Tensor) -> list[list[int]]:
    """One token a step and row, the likeliest or a drawn one; rows that end leave the batch."""
    outputs: list[list[int]] = [[] for _ in ids]
    rows, tokens = torch.arange(len(ids), device=ids.device), ids  # (B, 1 + what is generated)
    noise = noise.to(ids.device)  # (B, max_new_tokens)
    for step in range(options.max_new_tokens):
        logits = predict(lm, tokens[:, -1:], cache)[:, 0]  # (B, V)
        logits = constrain(logits, tokens, lm.config.eos_token_id, options)
        u = noise[rows, step]  # (B,)
        ids = draw(logits, options, u) if options.sample else logits.argmax(-1)[:, None]  # (B, 1)
        tokens = torch.cat((tokens, ids), 1)
        going = ids[:, 0] != lm.config.eos_token_id
        if not going.all():
            cache = cache[going.repeat_interleave(len(cache.real) // len(going))]
            rows, tokens = rows[going], tokens[going]
        for row, token in zip(rows.tolist(), tokens[:, -1].tolist()):
            outputs[row].append(token)
        if not len(rows):
            break
    return outputs


def search_beams(lm, cache: Cache, ids: Tensor, options: Options) -> list[list[int]]:
    """The best of K beams for each row: they share the row's prefix and source, a step appends K slots.

    The M members of an ensemble are rows of the cache that go through the same beams.
    """
    B, K, M, eos = len(ids), options.beams, len(cache.real) // len(ids), lm.config.eos_token_id
    rows = list(range(B))
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in rows]
    tokens = ids[:, None].expand(-1, K, -1)  # (B, K, 1 + length): what y goes on from, and y
    scores = torch.full((B, K), NEVER, device=ids.device)
    scores[:, 0] = 0.0  # one beam exists so far, or all would propose the same
    logits = predict(lm, ids, cache).expand(-1, K, -1)  # (B, K, V)
    cache.branch(K)
    for length in range(1, options.max_new_tokens + 1):
        log_p = constrain(logits.log_softmax(-1), tokens, eos, options)  # (B, K, V)
        best, parents, token = propose(scores[:, :, None] + log_p, 2 * K)  # (B, 2K), so that K can go on
        grown = torch.cat((tokens.take_along_dim(parents[:, :, None], 1), token[:, :, None]), 2)
        ends = (token == eos) | (length == options.max_new_tokens)
        alpha = length**options.length_penalty
        for row, *candidates in zip(rows, best[:, :K].tolist(), ends[:, :K].tolist(), grown[:, :K].tolist()):
            keep_finished(finished[row], K, alpha, candidates, eos)
        scores, running = (best + ends * NEVER).topk(K)  # (B, K)
        tokens = grown.take_along_dim(running[:, :, None], 1)  # (B, K, 1 + length)
        cache.follow(parents.gather(1, running).repeat_interleave(M, 0))
        hopes = (scores[:, 0] / alpha).tolist()
        going = [i for i, row in enumerate(rows) if can_improve(finished[row], hopes[i], options)]
        if not going or length == options.max_new_tokens:
            break
        if len(going) < len(rows):
            cache = cache[[M * i + member for i in going for member in range(M)]]
            scores, tokens, rows = scores[going], tokens[going], [rows[i] for i in going]
        logits = predict(lm, tokens[:, :, -1], cache)  # (B, K, V)
    return [hypotheses[0][1] if hypotheses else [] for hypotheses in finished]


def propose(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations by scores (B, K, V) -> their scores, parent beams and tokens (B, count)."""
    best, flat = scores.flatten(1).topk(count)
    return best, flat // scores.shape[-1], flat % scores.shape[-1]


def keep_finished(finished: list, K: int, alpha: float, candidates: list, eos: int) -> None:
    """Adds what ended among the best K candidates, and keeps the best K ever, the best first."""
    for log_p, ended, tokens in zip(*candidates):
        if ended and log_p > NEVER:
            # Sec. 5.3: sum log p / |y|^alpha; |y| counts the EOS, the returned tokens do not hold it
            finished.append((log_p / alpha, tokens[1:-1] if tokens[-1] == eos else tokens[1:]))
    finished.sort(key=lambda hypothesis: -hypothesis[0])
    del finished[K:]


def can_improve(finished: list, hope: float, options: Options) -> bool:
    """Whether the best running beam, were it to end now, would still beat the worst of K finished ones."""
    return len(finished) < options.beams or (not options.early_stopping and hope > finished[-1][0])


def constrain(scores: Tensor, tokens: Tensor, eos: int, options: Options) -> Tensor:
    """Scores (..., V) with what may not come behind tokens (..., 1 + generated) at -inf."""
    generated = tokens.shape[-1] - 1
    banned = [*options.banned, *([eos] if generated < options.min_new_tokens else [])]
    scores[..., banned] = -torch.inf
    if 0 < options.no_repeat_ngram_size <= tokens.shape[-1]:
        forbid_repeats(scores, tokens, options.no_repeat_ngram_size)
    for step, forced in ((0, options.forced_first), (options.max_new_tokens - 1, options.forced_last)):
        if generated == step and forced is not None:
            scores.fill_(-torch.inf)[..., forced] = 0.0
    return scores


def forbid_repeats(scores: Tensor, tokens: Tensor, n: int) -> None:
    """Puts what would complete an n-gram that tokens (..., T) already hold at -inf."""
    windows = tokens.unfold(-1, n, 1)  # (..., T - n + 1, n)
    start = tokens[..., tokens.shape[-1] - n + 1 :]  # (..., n - 1): of the n-gram that is next
    seen = (windows[..., :-1] == start[..., None, :]).all(-1)  # (..., T - n + 1)
    scores.scatter_add_(-1, windows[..., -1], torch.where(seen, -torch.inf, 0.0))


def draw(logits: Tensor, options: Options, u: Tensor) -> Tensor:
    """The token of each row (B, 1) on which u (B,) from [0, 1) falls, of the top_k likeliest and of these the
    fewest that hold top_p.
    """
    logits, token = (logits / options.temperature).sort(descending=True)  # (B, V)
    if options.top_k:
        logits[:, options.top_k :] = -torch.inf
    p = logits.softmax(-1)
    p[p.cumsum(-1) - p >= options.top_p] = 0  # never the likeliest: nothing comes before it
    ends = p.double().cumsum(-1)  # (B, V): token v has the part of [0, 1) between the ends of v - 1 and v
    places = torch.searchsorted(ends, u[:, None] * ends[:, -1:], right=True)  # (B, 1)
    return token.gather(1, places.clamp(max=ends.shape[-1] - 1))  # of a row of NaN, the last one

"""Weights near the served ones: candidates for an update, and the update. Pure.

A candidate is (version, seed): which weights it perturbs, and how. Its noise is recomputed from that, so a log that
names it is enough to apply, or to repeat, an update.

    dW = alpha u scale(W)        u per weight, uniform in [-1, 1) or standard normal
    scale(W) = W where |W| >= floor, else the floor
    W <- W + eta ((W + dW) - W) = W + eta dW        where the candidate won

The paper prints W + eta W~, which grows the weights by (1 + eta) with every win (x 143 after 100); what dueling bandits
do is to take a step towards the winner. One u for all weights (rand(-1, 1) read as a scalar) scales a network of ReLUs
as a whole and leaves its ranking as it was; and without a floor weights of 0, which all biases and last layers start
as, would never move.

Sources: Zheng et al. 2018, equations 7 and 8; Yue & Joachims 2009 (DBGD); Salimans et al. 2017 (evolution strategies).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xxhash
from msgspec import Struct

from pipeline.errors import PageturnError
from pipeline.ranking.candidates import Candidate

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Mapping[str, Array]  # by name


class PerturbingError(PageturnError):
    """Weights that the noise cannot be about; says what was expected and found."""


class Noise(Struct, frozen=True, forbid_unknown_fields=True):
    alpha: float = 0.1
    floor: float = 0.01
    shape: Literal["uniform", "normal"] = "uniform"
    layers: tuple[str, ...] = ()  # beginnings of the names of the weights that explore; none: all of them


def noise(candidate: Candidate, weights: Weights, rule: Noise) -> dict[str, Array]:
    """dW by name, for the weights that explore. `weights` are those of the candidate's version."""
    chosen = {name: w for name, w in weights.items() if _explores(name, rule)}
    if not chosen:
        msg = f"layers: expected the beginnings of some of {sorted(weights)}, found {list(rule.layers)}"
        raise PerturbingError(msg)
    return {name: _noise(candidate, name, w, rule) for name, w in chosen.items()}


def moved(weights: Weights, deltas: Mapping[str, Array], rate: float = 1.0) -> dict[str, Array]:
    """W + rate dW; weights without a delta stay what they are. With rate 1 a candidate's weights."""
    steps = {name: np.asarray(rate, w.dtype) * deltas[name] for name, w in weights.items() if name in deltas}
    return {name: w + steps[name] if name in steps else w for name, w in weights.items()}


def dbgd(candidate: Candidate, weights: Weights, rule: Noise, eta: float) -> dict[str, Array]:
    """The weights after `candidate` has won; eta 1 takes it over as it is."""
    return moved(weights, noise(candidate, weights, rule), eta)


def mirrored_pairs(version: int, seed: int, pairs: int) -> tuple[Candidate, ...]:
    """Candidates of a generation, each followed by its opposite."""
    seeds = [int(s) for s in np.random.SeedSequence([version, seed % 2**64]).generate_state(pairs, np.uint32)]
    return tuple(Candidate(version, s, mirrored) for s in seeds for mirrored in (False, True))


def evolved(
    scores: Mapping[Candidate, float], weights: Weights, rule: Noise, eta: float, rank: bool = True
) -> dict[str, Array]:
    """One step of evolution strategies: W + eta sum_i F_i dW_i / sum_i |F_i|, F_i the centred ranks of the scores.

    Where all scores are alike nothing moves. `rank` off takes scores less their mean as they are.
    """
    candidates = sorted(scores, key=lambda c: (c.version, c.seed, c.mirrored))
    values = np.array([scores[c] for c in candidates], np.float64)
    fitness = centred_ranks(values) if rank else values - values.mean()
    total = np.abs(fitness).sum()
    if total == 0:
        return dict(weights)
    shares = [float(share) for share in fitness / total]
    steps: dict[str, Array] = {}
    for candidate, share in zip(candidates, shares, strict=True):
        for name, delta in noise(candidate, weights, rule).items():
            part = np.asarray(share, delta.dtype) * delta
            steps[name] = steps[name] + part if name in steps else part
    return moved(weights, steps, eta)


def centred_ranks(values: Array) -> Array:
    """Ranks spread over [-.5, .5]; equal values share the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), np.float64)
    ranks[order] = np.arange(len(values))
    _, group = np.unique(values, return_inverse=True)
    shared = np.bincount(group, ranks) / np.bincount(group)
    return np.asarray(shared[group] / max(len(values) - 1, 1) - 0.5 * (len(values) > 1))


def rebased(trained: Weights, since: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """What long training has made of a snapshot, with the updates that were accepted since it was taken."""
    weights = dict(trained)
    for delta in since:
        weights = moved(weights, delta)
    return weights


def difference(new: Weights, old: Weights) -> dict[str, Array]:
    """The delta that leads from old to new weights."""
    return {name: new[name] - old[name] for name in old}


def _explores(name: str, rule: Noise) -> bool:
    return not rule.layers or name.startswith(rule.layers)


def _noise(candidate: Candidate, name: str, weights: Array, rule: Noise) -> Array:
    scale = np.where(np.abs(weights) >= rule.floor, weights, np.asarray(rule.floor, weights.dtype))
    alpha = -rule.alpha if candidate.mirrored else rule.alpha
    return np.asarray(np.asarray(alpha, weights.dtype) * _units(candidate, name, weights, rule) * scale)


def _units(candidate: Candidate, name: str, weights: Array, rule: Noise) -> Array:
    """[-1, 1) or standard normal, of the weights' shape: a function of (version, seed, name)."""
    key = np.random.SeedSequence([candidate.version, candidate.seed % 2**64, xxhash.xxh3_64_intdigest(name.encode())])
    generator = np.random.Generator(np.random.Philox(key))
    if rule.shape == "normal":
        return np.asarray(generator.standard_normal(weights.shape, np.float32), weights.dtype)
    return np.asarray(2 * generator.random(weights.shape, np.float32) - 1, weights.dtype)

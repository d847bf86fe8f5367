"""Floating-point operations in the matrix products of an update, by learner: what its code computes, needed or not.

A layer from i to o costs 2 i o per example forward, and as much again for the gradient of its weights, and again for
that of its input. Everything else an update does (biases, ReLU, Adam, sampling) is overhead by this count.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def products(layers: Sequence[int], *, forward: int, weights: int, inputs: int, first_input: int = 0) -> int:
    """Per example. How often each is computed; `first_input`: the gradient of what goes into the first layer."""
    sizes = [i * o for i, o in pairwise(layers)]
    return 2 * (sum(sizes) * (forward + weights) + sum(sizes[1:]) * inputs + sizes[0] * first_input)


def pageturn(observation: int, tower: Sequence[int], head: Sequence[int], *, shared: bool) -> int:
    """s and s' forward. V's and A's gradients go through the tower, the actor's only where it has one of its own."""
    width = tower[-1]
    towers = (1 if shared else 2) * products((observation, *tower), forward=2, weights=1, inputs=1)
    value = products((width, *head, 1), forward=2, weights=1, inputs=1, first_input=1)
    advantage = products((width, *head, 3), forward=2, weights=1, inputs=1, first_input=1)  # level, slope, curvature
    actor = products((width, *head, 1), forward=2, weights=1, inputs=1, first_input=0 if shared else 1)
    return towers + value + advantage + actor


def textbook(observation: int, hidden: Sequence[int], *, for_nothing: bool) -> int:
    """Two targets, the critic, the actor, and the critic once more at its action, back to that action.

    `for_nothing`: this last pass computes the gradient of the critic's weights, too.
    """
    actor = products((observation, *hidden, 1), forward=2, weights=1, inputs=1)
    critic_layers = (observation + 1, *hidden, 1)
    critic = products(critic_layers, forward=2, weights=1, inputs=1)
    ascent = products(critic_layers, forward=1, weights=int(for_nothing), inputs=1, first_input=1)
    return actor + critic + ascent

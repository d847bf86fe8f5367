"""The rows of the benchmark: what each method is set to.

gamma, beta, alpha, eta and both periods are the paper's, which searched for them by CTR. What it does not give (widths,
learning rate, batches, how long a major update trains; alpha of LinUCB, the settings of FTRL; epsilon; the noise of
evolution strategies) is the same for all methods that have it. `TRIED` has other values: what these would have given is
measured on users that the methods are not measured on, so whether one method was set better than another can be seen.
"""

from __future__ import annotations

from msgspec import Struct

from benchmarks.news.methods import Linear, Random
from benchmarks.news.ranking import DrnMethod, Plan
from benchmarks.news.running import Make
from pipeline.ranking import ftrl
from pipeline.ranking.linucb import LinUcb
from pipeline.ranking.perturbing import Noise
from pipeline.simulation.news.feed import Requests


class Ucb(Struct, frozen=True):
    alpha: float = 0.3


Settings = Plan | Ucb | ftrl.Settings | None  # None: at random

_ES = Noise(layers=("advantage",), shape="normal")

METHODS: dict[str, Settings] = {
    "random": None,
    "LR (FTRL)": ftrl.Settings(),
    "LinUCB": Ucb(),
    "DN": Plan(gamma=0.0, beta=0.0),
    "DQN": Plan(double=False, beta=0.0),
    "DDQN": Plan(beta=0.0),
    "DDQN+U": Plan(),
    "DDQN+U+EG": Plan(minor="epsilon"),
    "DDQN+U+DBGD": Plan(minor="dbgd"),
    "DDQN+U+gradient": Plan(minor="gradient"),
    "DDQN+U+ES": Plan(minor="es", noise=_ES),
}

_WIDE = Noise(layers=("advantage",), alpha=0.3)

TRIED: dict[str, Settings] = {
    "LR (FTRL)": METHODS["LR (FTRL)"],
    "LR (FTRL), alpha .03": ftrl.Settings(alpha=0.03),
    "LR (FTRL), alpha .3": ftrl.Settings(alpha=0.3),
    "LR (FTRL), no l1": ftrl.Settings(l1=0.0),
    "LinUCB": METHODS["LinUCB"],
    "LinUCB, alpha .1": Ucb(0.1),
    "LinUCB, alpha 1": Ucb(1.0),
    "DDQN+U": METHODS["DDQN+U"],
    "DDQN+U, rate 3e-4": Plan(learning_rate=3e-4),
    "DDQN+U, rate 3e-3": Plan(learning_rate=3e-3),
    "DDQN+U+DBGD": METHODS["DDQN+U+DBGD"],
    "DDQN+U+DBGD, eta 1": Plan(minor="dbgd", eta=1.0),
    "DDQN+U+DBGD, alpha .3, eta .3": Plan(minor="dbgd", noise=_WIDE, eta=0.3),
    "DDQN+U+DBGD, alpha .3, eta 1": Plan(minor="dbgd", noise=_WIDE, eta=1.0),
    "DDQN+U+gradient": METHODS["DDQN+U+gradient"],
    "DDQN+U+gradient, rate 3e-4": Plan(minor="gradient", learning_rate=3e-4),
    "DDQN+U+gradient, rate 3e-3": Plan(minor="gradient", learning_rate=3e-3),
    "DDQN+U+ES": METHODS["DDQN+U+ES"],
    "DDQN+U+ES, eta .3": Plan(minor="es", noise=_ES, eta=0.3),
    "DDQN+U+ES, eta 1": Plan(minor="es", noise=_ES, eta=1.0),
}


def maker(settings: Settings) -> Make:
    if settings is None:
        return lambda seed, *_: Random(seed)
    if isinstance(settings, Plan):
        return lambda seed, users, places, requests: DrnMethod(settings, seed, users, places, requests)
    return lambda seed, users, places, requests: Linear(_model(settings, columns_of(requests)))


def columns_of(requests: Requests) -> int:
    """Of the linear models: a constant, the user's and the item's."""
    return int(1 + requests.user_features.shape[1] + requests.item_features.shape[2])


def _model(settings: Ucb | ftrl.Settings, width: int) -> LinUcb | ftrl.Ftrl:
    return LinUcb(width, alpha=settings.alpha) if isinstance(settings, Ucb) else ftrl.Ftrl(width, settings)

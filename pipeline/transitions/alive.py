"""A user's requests within a session, for how alive the user is; nothing of it where no policy chooses items. Pure.

Pages are consumed in the order of their times but for the clock skew, so what is older than the last one consumed by
more than that is never asked for again, and is folded into one value.
"""

from __future__ import annotations

from pipeline.ranking import activeness
from pipeline.ranking.activeness import Activeness
from pipeline.transitions.rules import Rules


def observed(rules: Rules, requests: Activeness | None, time_ms: int) -> Activeness | None:
    """With one more request. After a long absence a user is new, whether or not the state was dropped meanwhile."""
    if rules.choosing is None:
        return None
    if requests is None or time_ms - _last_ms(requests) > rules.choosing.remember_ms:
        requests = Activeness()
    return activeness.observe(requests, (time_ms,))


def settled(rules: Rules, requests: Activeness | None, consumed_ms: int) -> Activeness | None:
    if rules.choosing is None or requests is None:
        return None
    return activeness.settle(rules.choosing.survival, requests, consumed_ms - rules.skew_ms - 1)


def after(rules: Rules, requests: Activeness | None, now_ms: int) -> float | None:
    """S at a moment, a request at that moment included."""
    if rules.choosing is None or requests is None:
        return None
    return activeness.after(rules.choosing.survival, requests, now_ms)


def forget_due_ms(rules: Rules, requests: Activeness | None) -> int | None:
    """By then every page has closed whose user is not new again."""
    if rules.choosing is None or requests is None:
        return None
    return _last_ms(requests) + rules.choosing.remember_ms + rules.longest_window_ms + 1


def _last_ms(requests: Activeness) -> int:
    return requests.recent[-1] if requests.recent else requests.value_ms

"""One alert on purpose: the trainer is stopped, and started again once Prometheus and Alertmanager say so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cluster import holding, watching
from cluster.record import Record, ShapeError

ALERT, PART = "PageturnTrainerDown", "trainer"
_DECIDED = 'sum(increase(pageturn_agent_decisions_total{decided_by="policy"}[1m]))'
_LEARNED = "max(pageturn_controller_served_version)"  # 1 is the baseline
_PATIENCE_S = 900.0
_LOOK_S = 0.5
Say = Callable[[str], None]


def run(folder: Path, record: Record, say: Say) -> None:
    """Raises ShapeError where something does not come about."""
    _await("pages decided by a policy", lambda: (watching.query(record.prometheus, _DECIDED) or 0) > 0, say)
    _await("a learned version served", lambda: (watching.query(record.prometheus, _LEARNED) or 0) > 1, say)
    _await(f"{ALERT} quiet", lambda: ALERT not in watching.alert_states(record.prometheus), say)
    holding.hold(folder, PART)
    say(f"{PART} is stopped")
    _await(f"{ALERT} fires", lambda: watching.alert_states(record.prometheus).get(ALERT) == "firing", say)
    _await("Alertmanager has it", lambda: ALERT in watching.told(record.alertmanager), say)
    say(f"it would tell: {', '.join(watching.told(record.alertmanager)[ALERT])}")
    holding.release(folder, PART)
    say(f"{PART} is started")
    _await(f"{ALERT} is resolved", lambda: ALERT not in watching.alert_states(record.prometheus), say)
    _await("Alertmanager knows", lambda: ALERT not in watching.told(record.alertmanager), say)


def _await(what: str, happens: Callable[[], bool], say: Say) -> None:
    began_s = time.monotonic()
    while time.monotonic() - began_s < _PATIENCE_S:
        try:
            if happens():
                say(f"{what}: after {time.monotonic() - began_s:.0f} s")
                return
        except OSError:  # not up yet
            pass
        time.sleep(_LOOK_S)
    message = f"{what}: not within {_PATIENCE_S:.0f} s"
    raise ShapeError(message)

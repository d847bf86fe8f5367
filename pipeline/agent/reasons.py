"""Why a page fell back to the baseline: a small closed set, so that it can be counted and alerted on."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    OFF = "off"  # the kill switch, or an agent in mode off
    STARTING = "starting"  # the agent has not seen yet which versions there are, or builds its first one
    NO_MODEL = "no_model"  # nothing has been published for the policy yet
    STORE = "store"  # the key-value store did not answer in time, or lacks the parameters
    BAD_FEATURES = "bad_features"  # the request's features are not what the config says
    TIMEOUT = "timeout"  # the deadline was used up
    UNAVAILABLE = "unavailable"  # no connection to the model server, or it is overloaded
    AVOIDED = "avoided"  # the model server failed several times in a row, and is left alone for a moment
    NOT_SERVED = "not_served"  # the model server does not have the version
    REFUSED = "refused"  # the model server refused the call, or failed on it
    VERSION_MISMATCH = "version_mismatch"  # another version answered, or parameters are of another config
    BAD_SIGNATURE = "bad_signature"  # the model takes other inputs than the config says
    BAD_REPLY = "bad_reply"  # wrong shape or type, NaN, or outside the action's range
    SCORES = "scores"  # the ranker's scores cannot be fused, and the received order was served
    OVERLOADED = "overloaded"  # the service sheds load
    INTERNAL = "internal"  # a fault of the agent itself; the log has its traceback


class Trouble(Exception):
    """Something on the path to a learned decision failed. Never leaves the agent: the page gets the baseline."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason, self.detail = reason, detail

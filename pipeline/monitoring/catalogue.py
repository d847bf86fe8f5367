"""Every metric of every process, in one table. What is not in it cannot be counted; docs/metrics.md is written from it.

Names follow the conventions of Prometheus: `pageturn_<process>_<name>`, base units, `_total` on counters. No label
takes a value per user, item, session or model version, so the number of series is bounded by the config.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
LONG_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
DEPTHS = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 50.0, 100.0)
TENTHS = tuple(i / 10 for i in range(11))


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(NamedTuple):
    name: str  # in the code; `full_name` is what Prometheus sees
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = SECONDS  # of a histogram


class Process(NamedTuple):
    name: str
    families: tuple[Family, ...]

    def full_name(self, family: Family) -> str:
        return f"pageturn_{self.name}_{family.name}" + ("_total" if family.kind is Kind.COUNTER else "")


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

AGENT = Process(
    "agent",
    (
        Family("decisions", _C, "Pages decided.", ("policy", "decided_by")),
        Family("fallbacks", _C, "Pages that fell back to the baseline.", ("policy", "reason")),
        Family("decide_seconds", _H, "Time to decide one page, or a batch.", ("form",)),
        Family("predict_seconds", _H, "Time of a Predict call, by what the version is: stable, canary, or one before.",
               ("policy", "role")),
        Family("action_in_range", _H, "Executed actions, 0 at the low end of the range, 1 at the high end.",
               ("policy", "action"), TENTHS),
        Family("retries", _C, "Pages, or batches, that asked once more because their version was no longer served."),
        Family("second_attempts", _C, "Predict calls made again within the deadline: no answer to the first."),
        Family("breaker_opened", _C, "Times the model server had failed so often in a row that it was left alone."),
        Family("breaker_open", _G, "1 while the model server is left alone, but for a call now and then."),
        Family("pages_not_encoded", _C, "Pages whose features could not be encoded.", ("reason",)),
        Family("vectors", _C, "Item vectors that pages asked for.", ("table",)),
        Family("vectors_fetched", _C, "Of these, not in memory: the key-value store was asked.", ("table",)),
        Family("vectors_unknown", _C, "Of these, in no table: their ids have no vector (yet).", ("table",)),
        Family("pages_on_stale_pointers", _C, "Pages decided while the pointers could not be read anew."),
        Family("requests_refused", _C, "Pages, batches and reports that cannot be what they say: the caller's mistake.",
               ("kind",)),
        Family("feedback", _C, "Feedback events taken in.", ("kind",)),
        Family("feedback_not_logged", _C, "Feedback events that did not reach the log; their callers were told."),
        Family("events_written", _C, "Events written to the log."),
        Family("events_dropped", _C, "Events that were lost before the log.", ("reason",)),
        Family("event_log_errors", _C, "Writes to the log that failed, and were tried again."),
        Family("event_writer_died", _C, "Faults that ended the thread that writes events."),
        Family("pointer_errors", _C, "Looks at the pointers that failed."),
        Family("pin_failures", _C, "Versions that were published and could not be pinned.", ("reason",)),
        Family("heartbeat_errors", _C, "Heartbeats that the key-value store did not take."),
        Family("served_version", _G, "Version a policy is served with.", ("policy",)),
    ),
)  # fmt: skip

STREAM = Process(
    "stream",
    (
        Family("records_read", _C, "Records read from the events topic."),
        Family("records_written", _C, "Records written to an output topic.", ("topic",)),
        Family("watermark_timestamp_seconds", _G, "Event time up to which every decision was made."),
        Family("snapshot_timestamp_seconds", _G, "When the last snapshot was complete."),
        Family("snapshot_seconds", _H, "Time a snapshot took.", (), LONG_SECONDS),
    ),
)

TRAINER = Process(
    "trainer",
    (
        Family("transitions", _C, "Transitions learned from, each once."),
        Family("duplicates", _C, "Transitions that were known already."),
        Family("refused", _C, "Transitions that could not be learned from.", ("reason",)),
        Family("updates", _C, "Updates of the weights."),
        Family("explored", _C, "Transitions whose page a learned policy decided.", ("policy",)),
        Family("replay_transitions", _G, "Transitions in the replay buffer."),
        Family("learning", _G, "What the last round came to: losses, means of V, A and the action, size of Q.",
               ("quantity", "policy", "action")),
        Family("last_transition_timestamp_seconds", _G, "Stamp of the last transition learned from."),
        Family("feature_drift_psi", _G, "Drift of a feature from its reference; above 0.25 it moved.", ("feature",)),
        Family("feature_missing_share", _G, "Share of the latest rows without a value.", ("feature",)),
        Family("out_of_vocabulary_share", _G, "Share of the latest ids without a row of their own.", ("feature",)),
        Family("rows_begun", _C, "Ids that got a row of a table that others may take: cold, or remembered.",
               ("table", "start")),
        Family("candidates", _C, "Candidates handed out, of all policies together."),
        Family("checkpoint_timestamp_seconds", _G, "When the last checkpoint was complete."),
        Family("transition_to_candidate_seconds", _H, "From a transition's being in the log to the next candidate.",
               (), LONG_SECONDS),
        Family("went_back", _C, "Requests to go back to an earlier candidate: restored, or lost (no longer kept).",
               ("outcome",)),
    ),
)  # fmt: skip

CONTROLLER = Process(
    "controller",
    (
        Family("verdicts", _C, "Candidates judged.", ("policy", "outcome", "reason")),
        Family("served_version", _G, "Version a policy's pointer names.", ("policy",)),
        Family("served_since_timestamp_seconds", _G, "When that version went out.", ("policy",)),
        Family("frozen", _G, "1 while nothing is published for a policy: somebody, or the evidence, said so.",
               ("policy",)),
        Family("pinned_version", _G, "Version that somebody has pinned a policy to, frozen as well; 0: none.",
               ("policy",)),
        Family("off", _G, "1 while the kill switch has a policy off.", ("policy",)),
        Family("canary_version", _G, "Version that is tried on a share of a policy's buckets; 0: none.", ("policy",)),
        Family("candidate_to_served_seconds", _H, "From the candidate's export to its being served.", ("policy",),
               LONG_SECONDS),
        Family("stage_seconds", _H, "Of that: check (waiting for it included), publish, load and probe, canary.",
               ("policy", "stage"), LONG_SECONDS),
        Family("resumed", _C, "Publishes that were broken off, and were gone on with.", ("policy",)),
        Family("terms_ended", _C, "Times it had to begin anew: lease, store or volume says what was lost.", ("cause",)),
        Family("clock_jumps", _C, "Times the machine's clock was set, by more than a second."),
        Family("store_refilled", _C, "Times the key-value store had lost the pointers, and was filled again."),
        Family("records_restored", _C, "Versions whose records in the key-value store were lost or spoilt.",
               ("policy",)),
        Family("holds_lease", _G, "1 while this process is the one that publishes."),
    ),
)  # fmt: skip

MONITOR = Process(
    "monitor",
    (
        Family("records", _C, "Records of a topic.", ("topic",)),
        Family("last_record_timestamp_seconds", _G, "Stamp of a topic's last record.", ("topic",)),
        Family("set_aside", _C, "Events in no page.", ("fate", "reason")),
        Family("dead_letters", _C, "Records that could not be read or used.", ("reason",)),
        Family("pages", _C, "Pages closed.", ("bucket", "decided_by")),
        Family("pages_shown", _C, "Of these, pages that were shown.", ("bucket",)),
        Family("pages_with_click", _C, "Of these, pages with a click.", ("bucket",)),
        Family("clicks", _C, "Clicks.", ("bucket",)),
        Family("orders", _C, "Orders.", ("bucket",)),
        Family("order_value", _C, "Value of the orders.", ("bucket",)),
        Family("dwell_seconds", _C, "Seconds spent reading.", ("bucket",)),
        Family("reward", _G, "Sum of the rewards since the start (a reward may be negative).",
               ("bucket", "decided_by")),
        Family("transitions", _C, "Transitions.", ("bucket", "decided_by")),
        Family("visits", _C, "Visits that ended, by who decided their first page.", ("bucket", "decided_by", "ending")),
        Family("visit_pages", _H, "Pages of a visit: how deep users go.", ("bucket",), DEPTHS),
        Family("user_click_rate", _G, "Of the users of the last full hour with a page shown, the share who clicked.",
               ("bucket",)),
        Family("join_seconds", _H, "From the page itself to its transition in the log: windows, lateness, the stream.",
               (), LONG_SECONDS),
        Family("click_to_transition_seconds", _H, "The same from a click on it.", (), LONG_SECONDS),
    ),
)  # fmt: skip

PROCESSES = (AGENT, STREAM, TRAINER, CONTROLLER, MONITOR)

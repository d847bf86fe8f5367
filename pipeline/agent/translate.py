"""Messages of agent.proto <-> requests and records. Pure; what a message can say but a record cannot is refused."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from pipeline.agent import agent_pb2 as pb
from pipeline.agent.requests import AgentRequestError, PageDecision, PageRequest
from pipeline.records import SCHEMA_VERSION, DecidedBy, Features, FeatureValue, Feedback, FeedbackKind, Item, Scalar

_DECIDED_BY = {
    DecidedBy.POLICY: pb.DECIDED_BY_POLICY,
    DecidedBy.BASELINE: pb.DECIDED_BY_BASELINE,
    DecidedBy.FALLBACK: pb.DECIDED_BY_FALLBACK,
}
_KINDS = {pb.FeedbackKind.Value(f"FEEDBACK_KIND_{kind.name}"): kind for kind in FeedbackKind}


def to_page(message: pb.DecideRequest) -> PageRequest:
    """Raises AgentRequestError."""
    return PageRequest(
        message.request_id,
        message.user_id,
        message.session_id,
        message.page_index,
        tuple([_to_item(item) for item in message.items]),
        _to_features("user", message.user),
        _to_features("context", message.context),
        _to_features("page", message.page),
        message.time_ms if message.HasField("time_ms") else None,
    )


def to_feedback(message: pb.Feedback, now_ms: int) -> Feedback:
    """Raises AgentRequestError."""
    if message.kind not in _KINDS:
        msg = f"kind: expected one of {', '.join(map(pb.FeedbackKind.Name, _KINDS))}, found {message.kind}"
        raise AgentRequestError(msg)
    return Feedback(
        SCHEMA_VERSION,
        message.event_id,
        message.request_id,
        message.user_id,
        message.session_id,
        message.time_ms if message.HasField("time_ms") else now_ms,
        _KINDS[message.kind],
        message.item_id if message.HasField("item_id") else None,
        message.value if message.HasField("value") else 1.0,
    )


def from_decision(decided: PageDecision) -> pb.DecideResponse:
    decision = decided.decision
    return pb.DecideResponse(
        request_id=decided.request_id,
        item_ids=decided.item_ids,
        order=decided.order,
        actions=[pb.Action(name=action.name, value=action.value) for action in decision.actions],
        decided_by=_DECIDED_BY[decision.decided_by],
        policy=decision.policy,
        bucket=decision.bucket,
        model_version=decision.model_version,
        fallback_reason=decision.fallback_reason,
    )


def from_page(request: PageRequest) -> pb.DecideRequest:
    """For clients in Python, as is the one below. Filled in place: what is put together of messages copies them."""
    message = pb.DecideRequest(
        request_id=request.request_id,
        user_id=request.user_id,
        session_id=request.session_id,
        page_index=request.page_index,
        time_ms=request.time_ms,
    )
    for item in request.items:
        _fill_item(message.items.add(), item)
    fill_features(message.user, request.user)
    fill_features(message.context, request.context)
    fill_features(message.page, request.page)
    return message


def from_feedback(feedback: Feedback) -> pb.Feedback:
    return pb.Feedback(
        event_id=feedback.event_id,
        request_id=feedback.request_id,
        user_id=feedback.user_id,
        session_id=feedback.session_id,
        time_ms=feedback.time_ms,
        kind=pb.FeedbackKind.Value(f"FEEDBACK_KIND_{feedback.kind.name}"),
        item_id=feedback.item_id,
        value=feedback.value,
    )


def fill_features(messages: MutableMapping[str, pb.Value], features: Features) -> None:
    """Raw values as messages; one that is absent has a name."""
    for name, value in features.items():
        _fill_value(messages[name], value)


def _fill_item(message: pb.Item, item: Item) -> None:
    message.item_id = item.item_id
    if item.click_score is not None:
        message.click_score = item.click_score
    if item.pay_score is not None:
        message.pay_score = item.pay_score
    if item.features:
        fill_features(message.features, item.features)


def _to_item(message: pb.Item) -> Item:
    """A hundred times a page. A score that is not there reads as 0; only of such ones it is asked whether they are."""
    click, pay = message.click_score, message.pay_score
    return Item(
        message.item_id,
        click if click or message.HasField("click_score") else None,
        pay if pay or message.HasField("pay_score") else None,
        _to_features(f"items[{message.item_id}].features", message.features) if message.features else {},
    )


def _to_features(where: str, messages: Mapping[str, pb.Value]) -> Features:
    return {name: _to_value(f"{where}.{name}", message) for name, message in messages.items()}


def _to_value(where: str, message: pb.Value) -> FeatureValue:
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "list":
        values = message.list.values
        texts = tuple([value.text for value in values])  # ids, most of the time; what is no text reads as an empty one
        return texts if all(texts) else tuple(_to_scalar(f"{where}[{i}]", value) for i, value in enumerate(values))
    value: Scalar = getattr(message, kind)
    return value


def _to_scalar(where: str, message: pb.Value) -> Scalar:
    value = _to_value(where, message)
    if value is None or isinstance(value, tuple):
        msg = f"{where}: expected a number, text or flag, found {'nothing' if value is None else 'a list'}"
        raise AgentRequestError(msg)
    return value


def _fill_value(message: pb.Value, value: FeatureValue) -> None:
    if isinstance(value, tuple | list):
        message.list.SetInParent()  # also of one that is empty
        for each in value:
            _fill_value(message.list.values.add(), each)
    elif value is not None:
        setattr(message, _kind(value), value)


def _kind(value: Scalar) -> str:
    match value:
        case str():
            return "text"
        case bool():
            return "flag"
        case int():
            return "integer" if value < 2**63 else "unsigned"
        case float():
            return "number"

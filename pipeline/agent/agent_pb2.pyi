from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecidedBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECIDED_BY_UNSPECIFIED: _ClassVar[DecidedBy]
    DECIDED_BY_POLICY: _ClassVar[DecidedBy]
    DECIDED_BY_BASELINE: _ClassVar[DecidedBy]
    DECIDED_BY_FALLBACK: _ClassVar[DecidedBy]

class FeedbackKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_KIND_UNSPECIFIED: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_CLICK: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_ORDER: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_DWELL: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_PAGE_TURN: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_LEAVE: _ClassVar[FeedbackKind]
    FEEDBACK_KIND_SHOWN: _ClassVar[FeedbackKind]
DECIDED_BY_UNSPECIFIED: DecidedBy
DECIDED_BY_POLICY: DecidedBy
DECIDED_BY_BASELINE: DecidedBy
DECIDED_BY_FALLBACK: DecidedBy
FEEDBACK_KIND_UNSPECIFIED: FeedbackKind
FEEDBACK_KIND_CLICK: FeedbackKind
FEEDBACK_KIND_ORDER: FeedbackKind
FEEDBACK_KIND_DWELL: FeedbackKind
FEEDBACK_KIND_PAGE_TURN: FeedbackKind
FEEDBACK_KIND_LEAVE: FeedbackKind
FEEDBACK_KIND_SHOWN: FeedbackKind

class Value(_message.Message):
    __slots__ = ("number", "integer", "unsigned", "text", "flag", "list")
    class List(_message.Message):
        __slots__ = ("values",)
        VALUES_FIELD_NUMBER: _ClassVar[int]
        values: _containers.RepeatedCompositeFieldContainer[Value]
        def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    UNSIGNED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    number: float
    integer: int
    unsigned: int
    text: str
    flag: bool
    list: Value.List
    def __init__(self, number: _Optional[float] = ..., integer: _Optional[int] = ..., unsigned: _Optional[int] = ..., text: _Optional[str] = ..., flag: _Optional[bool] = ..., list: _Optional[_Union[Value.List, _Mapping]] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("item_id", "click_score", "pay_score", "features")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CLICK_SCORE_FIELD_NUMBER: _ClassVar[int]
    PAY_SCORE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    click_score: float
    pay_score: float
    features: _containers.MessageMap[str, Value]
    def __init__(self, item_id: _Optional[str] = ..., click_score: _Optional[float] = ..., pay_score: _Optional[float] = ..., features: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("request_id", "user_id", "session_id", "page_index", "items", "user", "context", "page", "time_ms")
    class UserEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    class PageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    session_id: str
    page_index: int
    items: _containers.RepeatedCompositeFieldContainer[Item]
    user: _containers.MessageMap[str, Value]
    context: _containers.MessageMap[str, Value]
    page: _containers.MessageMap[str, Value]
    time_ms: int
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., session_id: _Optional[str] = ..., page_index: _Optional[int] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., user: _Optional[_Mapping[str, Value]] = ..., context: _Optional[_Mapping[str, Value]] = ..., page: _Optional[_Mapping[str, Value]] = ..., time_ms: _Optional[int] = ...) -> None: ...

class Action(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("request_id", "item_ids", "order", "actions", "decided_by", "policy", "bucket", "model_version", "fallback_reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    order: _containers.RepeatedScalarFieldContainer[int]
    actions: _containers.RepeatedCompositeFieldContainer[Action]
    decided_by: DecidedBy
    policy: str
    bucket: str
    model_version: int
    fallback_reason: str
    def __init__(self, request_id: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., order: _Optional[_Iterable[int]] = ..., actions: _Optional[_Iterable[_Union[Action, _Mapping]]] = ..., decided_by: _Optional[_Union[DecidedBy, str]] = ..., policy: _Optional[str] = ..., bucket: _Optional[str] = ..., model_version: _Optional[int] = ..., fallback_reason: _Optional[str] = ...) -> None: ...

class DecideBatchRequest(_message.Message):
    __slots__ = ("pages",)
    PAGES_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedCompositeFieldContainer[DecideRequest]
    def __init__(self, pages: _Optional[_Iterable[_Union[DecideRequest, _Mapping]]] = ...) -> None: ...

class PageAnswer(_message.Message):
    __slots__ = ("decision", "error")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    decision: DecideResponse
    error: str
    def __init__(self, decision: _Optional[_Union[DecideResponse, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class DecideBatchResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[PageAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[PageAnswer, _Mapping]]] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("event_id", "request_id", "user_id", "session_id", "time_ms", "kind", "item_id", "value")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    user_id: str
    session_id: str
    time_ms: int
    kind: FeedbackKind
    item_id: str
    value: float
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., session_id: _Optional[str] = ..., time_ms: _Optional[int] = ..., kind: _Optional[_Union[FeedbackKind, str]] = ..., item_id: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("feedback",)
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    feedback: _containers.RepeatedCompositeFieldContainer[Feedback]
    def __init__(self, feedback: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

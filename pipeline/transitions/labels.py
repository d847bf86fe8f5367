"""The point-wise labels of a page: what its feedback says of each item."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.records import Feedback, FeedbackKind, Item, Labels

_NO_LABELS = Labels()


def item_labels(items: Sequence[Item], feedback: Iterable[Feedback]) -> tuple[Labels, ...]:
    """One label per item. An item that is on the page twice has its feedback counted at its first place."""
    by_item: dict[str, list[Feedback]] = {}
    for event in feedback:
        if event.item_id is not None:
            by_item.setdefault(event.item_id, []).append(event)
    if not by_item:
        return (_NO_LABELS,) * len(items)
    return tuple([_item_label(by_item.pop(i.item_id)) if i.item_id in by_item else _NO_LABELS for i in items])


def _item_label(feedback: Iterable[Feedback]) -> Labels:
    clicks, orders = 0, 0
    order_value, dwell_s = _NO_LABELS.order_value, _NO_LABELS.dwell_s  # omit_defaults goes by identity
    for event in feedback:
        if event.kind is FeedbackKind.CLICK:
            clicks += 1
        elif event.kind is FeedbackKind.ORDER:
            orders += 1
            order_value += event.value
        elif event.kind is FeedbackKind.DWELL:
            dwell_s += event.value
    return Labels(clicks, orders, order_value, dwell_s)

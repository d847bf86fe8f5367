"""What of a feature config is the same in another one, so that what was learned about it still holds. Pure."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import structs

from pipeline.config.schema import Dense, Feature, FeatureConfig


class Change(NamedTuple):
    stays: frozenset[
        str
    ]  # features with the same definition over the same table, whatever is done where one is missing
    tables: frozenset[str]
    came: tuple[str, ...]  # with those that changed
    went: tuple[str, ...]

    def __str__(self) -> str:
        parts = {"carried over": sorted(self.stays), "added, without effect yet": self.came, "dropped": self.went}
        return "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in parts.items())


def change(former: FeatureConfig, now: FeatureConfig) -> Change:
    """A feature whose definition differs went and came: its numbers mean something else."""
    tables = frozenset(t for t, table in now.embeddings.items() if former.embeddings.get(t) == table)
    known = {f.name: _essence(f) for f in former.features}
    stays = frozenset(
        f.name
        for f in now.features
        if known.get(f.name) == _essence(f)
        and (isinstance(f, Dense) or getattr(f, "embedding", None) in {None, *tables})
    )
    came, went = (tuple(f.name for f in c.features if f.name not in stays) for c in (now, former))
    return Change(stays, tables, came, went)


def _essence(feature: Feature) -> Feature:
    return structs.replace(feature, missing=None)

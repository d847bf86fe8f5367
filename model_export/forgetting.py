"""What the store holds of a version goes when its folder does. Snapshots are shared: one of another version stays."""

from __future__ import annotations

from model_export import volume
from model_export.candidate import CandidateError
from model_export.desired import DesiredState, PolicyState
from model_export.site import Site
from pipeline.stores.published import parameters_key, version_key


def forget_version(site: Site, state: DesiredState, name: str, version: int, parameters: str | None) -> None:
    """The version's record, and its parameters (None: not known) unless another version has the same."""
    keys = [version_key(site.prefix, name, version)]
    if parameters is not None and parameters not in _parameters_kept(site, state):
        keys.append(parameters_key(site.prefix, parameters))
    site.store.delete_many(keys)


def parameters_of(site: Site, policy: PolicyState, version: int) -> str | None:
    try:
        return volume.read_version(site.models, policy.model_name, version).parameters
    except CandidateError:
        return None


def _parameters_kept(site: Site, state: DesiredState) -> set[str | None]:
    """Of every version folder of every policy, and of what is being published."""
    kept: set[str | None] = set()
    for policy in state.policies.values():
        kept.update(parameters_of(site, policy, v) for v in volume.versions_on(site.models, policy.model_name))
        kept.update(entry.parameters for entry in policy.loaded)
        if policy.pending:
            kept.add(policy.pending.parameters)
    return kept

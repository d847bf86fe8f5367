"""Rules about feeds whose policies choose items: what such a config needs, and what would have no effect in it."""

from __future__ import annotations

from pipeline.config.findings import Finding, Findings, all_read
from pipeline.config.problems import suggestion
from pipeline.config.ranking import Dbgd, EvolutionStrategies
from pipeline.config.schema import Drn, Feature, FeatureConfig, IdFeature, Sequence

ITEM = "item."
_EXPLORING = Dbgd | EvolutionStrategies
_OF_ITEMS = ("click", "order", "dwell")


def kinds(config: FeatureConfig) -> Findings:
    """`ranking` takes the place of `fusion` and `action`; `algorithm.kind` says which of them there has to be."""
    algorithm, ranking, fusion, action = all_read([config.algorithm, config.ranking, config.fusion, config.action])
    ranks = isinstance(algorithm, Drn)
    for name, given, wanted in (
        ("fusion", fusion, not ranks),
        ("action", action, not ranks),
        ("ranking", ranking, ranks),
    ):
        if wanted and not given:
            yield Finding((), f'missing key "{name}"')
        elif given and not wanted:
            needs = "only algorithm.kind drn has it" if name == "ranking" else "algorithm.kind drn has ranking instead"
            yield Finding((name,), f"has no effect: {needs}")


def minors(config: FeatureConfig) -> Findings:
    ranking = config.ranking
    if ranking is None:
        return
    given, learned = all_read([ranking])[0].minor, [p.name for p in all_read(config.policies) if p.kind == "learned"]
    for name in given:
        if name not in learned:
            yield Finding(("ranking", "minor", name), f'no learned policy "{name}"{suggestion(name, learned)}')


def tau(config: FeatureConfig) -> Findings:
    if config.ranking is not None:
        how = all_read([all_read([config.ranking])[0].interleaving])[0]
        if how.tau is not None and how.by == "team_draft":
            yield Finding(("ranking", "interleaving", "tau"), "has an effect with by: probabilistic only")


def activeness(config: FeatureConfig) -> Findings:
    """A next request is looked for until the session's gap is over: shorter than an absence it finds too few."""
    if config.ranking is None:
        return
    model = all_read([all_read([config.ranking])[0].activeness])[0]
    absence, remember, gap = all_read([model.absence, model.remember, config.stream.session_gap])
    path = ("ranking", "activeness")
    if absence == 0:
        yield Finding((*path, "absence"), "must be longer than 0")
    if gap < absence:
        message = (
            "must be at least ranking.activeness.absence: what follows a page is the user's next request until then"
        )
        yield Finding(("stream", "session_gap"), f"{message}, {absence} ms; got {gap} ms")
    if remember < gap:
        message = "must be at least stream.session_gap: who is waited for is not forgotten"
        yield Finding((*path, "remember"), f"{message}, {gap} ms; got {remember} ms")


def rewards(config: FeatureConfig) -> Findings:
    """What is learned is the reward of an item, and a penalty, a clip or a turned page is of no item."""
    if config.ranking is None:
        return
    reward = all_read([config.reward])[0]
    weights, penalties = all_read([reward.weights, reward.penalties])
    if not any(weights.get(kind, 0) for kind in _OF_ITEMS):
        yield Finding(
            ("reward", "weights"), f"with ranking one of {', '.join(_OF_ITEMS)} must be > 0: rewards of items"
        )
    if weights.get("page_turn"):
        yield Finding(("reward", "weights", "page_turn"), "has no effect with ranking: it is of a page, not of an item")
    if penalties.page_without_conversion or penalties.leave_without_conversion:
        yield Finding(("reward", "penalties"), "have no effect with ranking: they are of a page, not of an item")
    if reward.clip is not None:
        yield Finding(("reward", "clip"), "has no effect with ranking: it is of a page, not of an item")


def periods(config: FeatureConfig) -> Findings:
    """Candidates that are handed out faster than they may be published are superseded before a page has seen them."""
    ranking = config.ranking
    if ranking is None:
        return
    for name, minor in all_read([ranking])[0].minor.items():
        every, publish = all_read([all_read([minor])[0].every, config.publish.every])
        if every < publish:
            message = f"must be at least publish.every, {publish} ms"
            yield Finding(("ranking", "minor", name, "every"), f"{message}; got {every} ms")
    if config.publish.certification is not None:
        message = "is not there for ranking: it needs the density of an action"
        yield Finding(("publish", "certification"), message)


def canary(config: FeatureConfig) -> Findings:
    """What is interleaved is judged by the pages of a period, and belongs to the version it came with: it would have
    the share's pages only, and what follows it would wait. Interleaving is a trial already, page by page."""
    if config.ranking is None or config.publish.canary is None:
        return
    ranking = all_read([config.ranking])[0]
    minors = {name: all_read([minor])[0] for name, minor in ranking.minor.items()}
    exploring = [f"ranking.minor.{name}" for name, minor in minors.items() if isinstance(minor, _EXPLORING)]
    major = all_read([ranking.major])[0]
    if major is not None and all_read([major.trial])[0]:
        exploring.append("ranking.major.trial")
    if exploring:
        message = "cannot be had with what is tried by interleaving, which would see the share's pages only"
        yield Finding(("publish", "canary"), f"{message}: {', '.join(exploring)}")


def item_features(config: FeatureConfig) -> Findings:
    features = all_read(config.features)
    of_items = [f for f in features if all_read([f.source])[0].startswith(ITEM)]
    if config.ranking is not None:
        for what, some in (("items", of_items), ("user, context or page", [f for f in features if f not in of_items])):
            if not some:
                yield Finding(("features",), f"with ranking at least one must be of {what}")


def scope(config: FeatureConfig, feature: Feature) -> Findings:
    if not all_read([feature.source])[0].startswith(ITEM):
        return
    if config.ranking is None:
        yield Finding(("source",), "item features have an effect with ranking only")
    if isinstance(feature, Sequence):
        yield Finding(("source",), "a sequence cannot be of items: which of its vectors were found is logged per page")


def shared_tables(config: FeatureConfig, feature: Feature) -> Findings:
    """Users and items have tables of their own: they are counted apart."""
    if not isinstance(feature, IdFeature):
        return
    if not all_read([feature.source])[0].startswith(ITEM):
        return
    others = [f for f in all_read(config.features) if isinstance(f, IdFeature) and f.embedding == feature.embedding]
    other = next((f for f in others if not all_read([f.source])[0].startswith(ITEM)), None)
    if other is not None:
        message = f'table "{feature.embedding}" is that of feature "{other.name}", which is of no item'
        yield Finding(("embedding",), f"{message}; take another table")


RULES = (kinds, minors, tau, activeness, rewards, periods, canary, item_features)
FEATURE_RULES = (scope, shared_tables)

"""Synthetic users of a feed: a pure seeded model, and on it an environment, event traffic and yardsticks."""

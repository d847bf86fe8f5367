"""A simulated news feed: items appear and age out, users come back as they are pleased. For DRN and what it is compared
with; `pipeline/simulation` beside it is another world, whose items are sold.
"""

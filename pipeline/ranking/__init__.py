"""Which items a page shows, after DRN (Zheng et al., WWW 2018): activeness, interleaving, perturbed weights, baselines.

Pure: values in, values out, no framework but numpy where arrays are meant. Everything drawn is a function of what it is
drawn for, so that any decision can be recomputed from its log.
"""

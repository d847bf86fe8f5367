"""The production shape on one machine, made from the manifests: `python -m cluster up`, or `make up`."""

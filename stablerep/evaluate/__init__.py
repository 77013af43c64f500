"""How good frozen features are: probes on a labelled set of real photos.

Nothing is imported here: `--help` and a wrong flag must not wait seconds for what the work needs.
"""

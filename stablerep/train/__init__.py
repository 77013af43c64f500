"""Training an encoder on shards or folders of pictures.

Nothing is imported here: `--help` and a wrong flag must not wait seconds for what the work needs.
"""

"""Prompts to shards of pictures.

Nothing is imported here: `--help` and a wrong flag must not wait seconds for what the work needs.
"""

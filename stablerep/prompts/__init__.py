"""Class lists to prompts, by templates with wildcards.

Nothing is imported here, as in the other commands' packages.
"""

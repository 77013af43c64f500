"""Prompts: files of them are read, and written from class lists, templates and a language model."""

from stablerep.prompts.reader import Prompt, read_prompts, without_labels
from stablerep.prompts.text import caption_key, is_outside_latin

__all__ = ["Prompt", "caption_key", "is_outside_latin", "read_prompts", "without_labels"]

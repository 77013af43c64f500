"""Prompts: files of them are read, and written from class lists, templates and a language model."""

from stablerep.prompts.reader import Prompt, read_prompts

__all__ = ["Prompt", "read_prompts"]

"""What the page says, in English and Japanese, and how it writes numbers."""

from stablerep.report.words.answer import Verdict, answer, verdict_of
from stablerep.report.words.language import Words, open_words
from stablerep.report.words.names import arm_names

__all__ = ["Verdict", "Words", "answer", "arm_names", "open_words", "verdict_of"]

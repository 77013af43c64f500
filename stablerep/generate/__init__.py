from stablerep.generate.config import GenerateConfig
from stablerep.generate.job import GenerateSummary, generate
from stablerep.generate.pipeline import default_generator

__all__ = ["GenerateConfig", "GenerateSummary", "default_generator", "generate"]

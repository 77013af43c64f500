"""How good frozen features are: probes on a labelled set of real photos."""

from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.features import features_of
from stablerep.evaluate.job import evaluate, table
from stablerep.evaluate.probes import Probes, probe_features

__all__ = ["EvaluateConfig", "Probes", "evaluate", "features_of", "probe_features", "table"]

"""Training an encoder on shards or folders of pictures."""

from stablerep.train.config import TrainConfig
from stablerep.train.loop import train

__all__ = ["TrainConfig", "train"]

"""Training: recipes, the loop that survives a kill, and the report on the held-out split."""

from xattn_edge.training.combination import Combination
from xattn_edge.training.run import TrainProgress, TrainReport, train

__all__ = ["Combination", "TrainProgress", "TrainReport", "train"]

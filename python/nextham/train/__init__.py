"""Training, one process or several.

`settings` what a run is made of · `samples` prepared structures · `step` losses and errors of a batch · `trainer` the
loop · `parallel` several processes · `state` checkpoints · `record` what a run writes down · `evaluation` tables.
"""

from nextham.train.settings import TrainSettings, read_settings, settings_to_yaml
from nextham.train.trainer import Trainer, TrainingError

__all__ = ["TrainSettings", "Trainer", "TrainingError", "read_settings", "settings_to_yaml"]

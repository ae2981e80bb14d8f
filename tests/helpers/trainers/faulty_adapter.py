"""Candidates for the tests of replay bundles: the example's loop, sound and with a fault."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
import audit_my_trainer as mine


class Half(mine.MyTrainer):
    def loss(self, student, teacher, batch, old):
        values = super().loss(student, teacher, batch, old)
        whole = values["aggregate"]
        return values | {"aggregate": whole / 2 + whole.detach() / 2}


class Sound(mine.MyAdapter):
    name = "sound"


class HalfGradient(mine.MyAdapter):
    name = "half"
    trainer = Half

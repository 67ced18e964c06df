"""What the tests of benchmark cases share."""

import pytest

from accel.bench import trainings
from accel.cli.main import main


@pytest.fixture
def trained_here(monkeypatch):
    """Trainings run in this process: a new one takes seconds to import torch. In test_repeats they do not."""

    def run(command, folder):
        assert command[1:4] == ["-m", "accel", "train"] and main(command[3:]) == 0

    monkeypatch.setattr(trainings, "_run", run)

"""Fixtures of the tests of modules."""

import pytest

from accel.nn.replay import Segment


@pytest.fixture
def ran(monkeypatch):
    """The segments that ran: each is a part of a plan."""
    seen, run = [], Segment.run

    def counted(self, *inputs):
        seen.append(self)
        return run(self, *inputs)

    monkeypatch.setattr(Segment, "run", counted)
    return seen

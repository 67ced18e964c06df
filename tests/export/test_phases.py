"""Regular position sets as phases."""

import pytest
import torch

from accel.export.phases import Phase, phases
from accel.kernels.positions import PositionSet
from accel.masks import LATTICE_KEEPS, build_mask


def lattice(keep, height, width):
    return build_mask("lattice", keep, height, width, generator=torch.Generator())


@pytest.mark.parametrize("size", [(14, 14), (9, 16), (7, 7), (3, 5), (1, 8), (2, 2)])
@pytest.mark.parametrize("keep", [*LATTICE_KEEPS, 1.0])
def test_phases_make_up_the_set_and_what_it_skips(keep, size):
    positions = lattice(keep, *size)
    kept, skipped = phases(positions)
    found = [torch.cat([each.positions for each in part]) if part else torch.empty(0) for part in (kept, skipped)]
    everything = torch.cat(found)
    assert sorted(found[0].tolist()) == sorted(positions.positions.tolist())
    assert sorted(everything.tolist()) == list(range(size[0] * size[1]))
    for phase in (*kept, *skipped):
        assert len(phase.positions) == phase.rows * phase.columns > 0


@pytest.mark.parametrize("keep, count", [(1 / 2, 2), (1 / 3, 3), (2 / 3, 6), (1 / 4, 2), (3 / 4, 6), (1.0, 1)])
def test_a_lattice_has_as_few_phases_as_its_period_allows(keep, count):
    assert len(phases(lattice(keep, 24, 36))[0]) == count


def test_an_irregular_set_has_none():
    drawn = build_mask("uniform", 0.5, 20, 20, generator=torch.Generator().manual_seed(0))
    assert phases(drawn) is None
    assert phases(PositionSet.full(20, 20)) is not None


def test_offsets_lead_to_one_phase():
    """The computed neighbours of a checkerboard's skipped positions: beside them in one phase, above in the other."""
    (even, odd), (right, _) = phases(lattice(1 / 2, 8, 8))
    assert (even, right) == (Phase(0, 0, 2, 2, (8, 8)), Phase(0, 1, 2, 2, (8, 8)))
    assert right.towards(even, (0, -1)) == (0, 0) and right.towards(even, (0, 1)) == (0, 1)
    assert right.towards(odd, (1, 0)) == (0, 0) and right.towards(odd, (-1, 0)) == (-1, 0)
    assert right.towards(even, (1, 0)) is None

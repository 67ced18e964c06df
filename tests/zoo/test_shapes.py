import math

import pytest
import torch

from accel.zoo.shapes import CLASSES, RADIUS, _inside, _star_radius, draw_shapes


def test_the_seed_decides_everything():
    def draw(seed):
        return draw_shapes(6, 96, torch.Generator().manual_seed(seed))

    assert all(torch.equal(a, b) for a, b in zip(draw(3), draw(3)))
    assert not torch.equal(draw(3).images, draw(4).images)


def test_contents_are_in_range_and_the_shape_is_inside_the_picture():
    shapes = draw_shapes(64, 128, torch.Generator().manual_seed(0))
    assert shapes.images.shape == (64, 3, 128, 128) and shapes.masks.shape == (64, 1, 128, 128)
    assert shapes.images.min() >= 0 and shapes.images.max() <= 1
    assert shapes.masks.unique().tolist() == [0, 1]
    assert set(shapes.labels.tolist()) == set(range(len(CLASSES)))
    area = shapes.masks.sum((1, 2, 3))
    assert area.min() > 0.25 * RADIUS[0] ** 2 and area.max() < math.pi * (RADIUS[1] + 1) ** 2
    # A shape may reach over the border by a tenth of its radius, which takes no more than 7 % of a disc.
    discs = area[shapes.labels == CLASSES.index("disc")]
    assert discs.min() > 0.93 * math.pi * RADIUS[0] ** 2


def test_object_and_ground_differ():
    shapes = draw_shapes(64, 96, torch.Generator().manual_seed(1))
    inside = (shapes.images * shapes.masks).sum((2, 3)) / shapes.masks.sum((2, 3))
    outside = (shapes.images * (1 - shapes.masks)).sum((2, 3)) / (1 - shapes.masks).sum((2, 3))
    assert (inside - outside).norm(dim=1).min() > 0.12


# Areas of the shapes in units of the squared radius, by elementary geometry.
AREAS = {
    "disc": math.pi,
    "ring": math.pi * (1 - 0.55**2),
    "triangle": 3 * math.sqrt(3) / 4,
    "square": 2.0,
    "star": 5 * 0.42 * math.sin(math.pi / 5),
    "cross": 2 * (2 * 0.28 * 2 * 0.95) - (2 * 0.28) ** 2,
}


@pytest.mark.parametrize("name", AREAS)
def test_areas_of_the_shapes(name):
    axis = (torch.arange(2000) + 0.5) / 1000 - 1
    u, v = axis[None, None, :], axis[None, :, None]
    area = 4 * _inside(name, u, v).double().mean()
    assert float(area) == pytest.approx(AREAS[name], rel=2e-3)


def test_star_vertices():
    angles = torch.tensor([0.0, math.pi / 5, 2 * math.pi / 5])
    assert torch.allclose(_star_radius(angles, 5, 0.42), torch.tensor([0.42, 1.0, 0.42]), atol=1e-6)


def test_small_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 80 pixels"):
        draw_shapes(1, 79, torch.Generator())

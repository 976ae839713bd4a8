"""Views: where their numbers come from, and that no label is learnt from them."""

import pytest
import torch

from secateur.errors import ConfigError, DataError
from secateur.steps import Distill, Finetune
from secateur.train import TrainConfig, Views, fit_
from secateur.train.views import laid_over, patched, turned


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    """Image i holds numbers from i to i + 1."""
    return torch.rand(64, 3, 16, 12, generator=seeded()) + torch.arange(64.0).view(-1, 1, 1, 1)


def test_a_patch_is_one_box_of_the_other_image(images):
    other = images.flip(0)
    made = patched(images, other, seeded())
    is_other = (made != images).any(1)
    assert torch.equal(made, torch.where(is_other[:, None], other, images))
    for mask in is_other:
        down, right = mask.any(1), mask.any(0)
        assert torch.equal(mask, down[:, None] & right)
        assert 4 <= down.sum() <= 12
        assert 3 <= right.sum() <= 9


def test_what_is_laid_over_is_at_most_half(images):
    other = images.flip(0)
    made = laid_over(images, other, seeded())
    part = ((made - images) / (other - images)).flatten(1)
    torch.testing.assert_close(part, part[:, :1].expand_as(part), rtol=0, atol=1e-3)
    assert (part[:, 0] >= -1e-3).all()
    assert (part[:, 0] <= 0.501).all()


def test_turning_by_nothing_is_nothing_and_a_little_keeps_the_mean(images):
    torch.testing.assert_close(turned(images, seeded(), 0.0, 0.0), images, rtol=1e-5, atol=1e-4)
    small = turned(images, seeded(), 0.1, 0.1)
    assert small.shape == images.shape
    assert not torch.allclose(small, images)
    torch.testing.assert_close(small.mean((1, 2, 3)), images.mean((1, 2, 3)), rtol=0, atol=0.1)


def test_each_fraction_gets_its_own_way(images):
    still = Views(shift_px=0, flip=False, patched=0.25, laid_over=0.5)
    made = still(images, seeded())
    is_same = (made == images).flatten(1)
    n_same = is_same.float().mean(1)
    assert (n_same[48:] == 1).all()
    assert (n_same[:16] > 0.3).all()
    assert (n_same[:16] < 1).sum() >= 14  # chance may give an image itself
    assert (n_same[16:48] < 0.3).sum() >= 30


def test_the_same_generator_gives_the_same_views(images):
    views = Views(angle=0.2, scale=0.15)
    assert torch.equal(views(images, seeded(1)), views(images, seeded(1)))
    assert not torch.equal(views(images, seeded(1)), views(images, seeded(2)))
    assert views(images[:1], seeded()).shape == images[:1].shape


def test_settings_round_trip():
    config = TrainConfig(augment=Views(angle=0.1, patched=0.5))
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "wrong", [{"patched": 0.8, "laid_over": 0.3}, {"patched": -0.1}, {"angle": -1.0}, {"scale": 1.0}, {"shift_px": -1}]
)
def test_what_is_refused(wrong):
    with pytest.raises(ConfigError):
        Views(**wrong)


def test_texts_have_no_views():
    with pytest.raises(DataError, match="needs images"):
        Views()(torch.zeros(4, 7), seeded())


def test_labels_are_not_learnt_from_views(images):
    train = TrainConfig(augment=Views(), epochs=1)
    with pytest.raises(ConfigError, match="No label fits"):
        fit_(torch.nn.Linear(4, 2), [], config=train)
    for distill in (None, Distill(weight=0.5)):
        with pytest.raises(ConfigError, match="No label fits"):
            Finetune(train=train, distill=distill)
    alone = Finetune(train=train, distill=Distill(weight=1))
    assert alone.train.augment == Views()

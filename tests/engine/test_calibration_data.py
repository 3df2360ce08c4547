"""Calibration sees training images through the evaluation pipeline, always the same ones."""

import pytest
import torch

from mcf_mm.engine.calibration_data import calibration_loader, image_names


def names(loader):
    return [name for batch in loader for name in image_names(batch)]


def test_images_are_a_fixed_choice_without_augmentation(cfg):
    state = torch.get_rng_state()
    loader = calibration_loader(cfg, 6)
    assert 'RandomFlip' not in repr(loader.dataset.dataset.pipeline)
    assert len(names(loader)) == 6
    assert names(loader) == names(calibration_loader(cfg, 6))
    assert names(loader) != names(calibration_loader(cfg, 6, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(cfg.train_dataloader.dataset.pipeline) == 3


def test_wrapped_datasets_are_followed(cfg):
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    assert len(names(calibration_loader(cfg, 20))) == 20


def test_a_config_without_training_set_is_refused(cfg):
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match='has no train_dataloader'):
        calibration_loader(cfg, 4)

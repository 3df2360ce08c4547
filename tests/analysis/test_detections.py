"""Detectors on real photos: mmdet's own interfaces take our configs, and the pictures are right."""

import json
import re
import shutil
from importlib.metadata import distributions
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from detectors import THRESHOLD, predict
from fork_server import run_tool
from mmengine.config import Config
from PIL import Image

from mcf_mm.analysis.detections import (
    CAPTION,
    Detector,
    draw_detections,
    find_inputs,
    find_listed,
    name_pictures,
)
from mcf_mm.pruning import find_ffns
from mcf_mm.weights.checkpoint import save_state_dict

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = {package.name for package in distributions()}


#: The whole script of somebody who has never heard of mcf_mm.
SCRIPT = """
import sys
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
result, *arguments = sys.argv[1:]
out = []
while '--' in arguments:
    config, checkpoint = arguments[:2]
    stop = arguments.index('--')
    photos, arguments = arguments[2:stop], arguments[stop + 1:]
    inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
    model = init_detector(config, checkpoint, device='cpu')
    found = dict(
        inferencer=inferencer(photos, return_datasamples=True, return_vis=True)['predictions'],
        api=inference_detector(model, photos),
    )
    found = {
        key: [{k: s.pred_instances[k] for k in ('bboxes', 'scores', 'labels')} for s in samples]
        for key, samples in found.items()
    }
    for name, net in (('inferencer', inferencer.model), ('api', model)):
        out.append((found[name], tuple(net.dataset_meta['classes'])))
torch.save(out, result)
"""


def test_mmdet_itself_takes_our_configs(photos, dense, pruned, tmp_path):
    """In a new process that imports nothing but mmdet.apis; the configs do the rest."""
    arguments = []
    for config, checkpoint, _ in (dense, pruned):
        arguments += [config, checkpoint, *photos, '--']
    # The original mmdet cannot even be imported beside an mmcv without operators.
    script = SCRIPT if 'onedl-mmdetection' in INSTALLED else f'import mcf_mm\n{SCRIPT}'
    done = run_tool(['-c', script, tmp_path / 'out.pt', *arguments], bare=True)
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / 'out.pt')
    assert len(out) == 4
    for (found, classes), (config, _, model) in zip(out, [dense] * 2 + [pruned] * 2, strict=True):
        number = model.bbox_head.num_classes
        assert len(classes) == number
        assert classes[0] == ('person' if number == 80 else 'mask_weared_incorrect')
        for photo, instances in zip(photos, found, strict=True):
            expected = predict(config, model, photo)
            assert expected['scores'].max() > THRESHOLD
            for key, value in expected.items():
                torch.testing.assert_close(instances[key], value, msg=f'{config} {photo} {key}')


def test_pictures_of_two_detectors(photos, dense, pruned, tmp_path):
    """The tool, in a process of its own, on a folder, a photo and a file that is damaged."""
    folder = tmp_path / 'folder'
    folder.mkdir()
    shutil.copy(photos[0], folder / 'a.jpg')
    (folder / 'b.jpg').write_bytes(b'')
    (folder / 'c.jpg').write_bytes(photos[0].read_bytes()[:9000])
    (folder / 'notes.txt').write_text('not an image')
    out = tmp_path / 'out'
    done = run_tool(
        [ROOT / 'tools' / 'detect.py', folder, photos[1]]
        + ['--config', dense[0], '--checkpoint', dense[1], '--against', *pruned[:2]]
        + ['--out', out, '--device', 'cpu', '--score-thr', THRESHOLD]
    )
    assert done.returncode == 1
    assert f'error: {folder / "b.jpg"}: the image file is empty (0 bytes)' in done.stderr
    assert f'error: {folder / "c.jpg"}: the JPEG file of 9000 bytes is truncated' in done.stderr
    assert 'error: 2 of 4 files could not be read or drawn' in done.stderr
    assert sorted(file.name for file in out.iterdir()) == [photos[1].name, 'a.jpg']
    lines = [line for line in done.stdout.splitlines() if 'drawn to' in line]
    for line, image, photo in zip(
        lines, (folder / 'a.jpg', photos[1]), (photos[0], photos[1]), strict=True
    ):
        counts = [
            int((predict(config, model, photo)['scores'] > THRESHOLD).sum())
            for config, _, model in (dense, pruned)
        ]
        assert min(counts) > 1
        picture = out / image.name
        boxes = f'{counts[0]} boxes and {counts[1]} boxes'
        assert line == f'{image}: {boxes}, drawn to {picture}'
        width, height = Image.open(photo).size
        assert Image.open(picture).size == (2 * width, height + CAPTION)
        # Left and right are the photo with different boxes on it.
        panels = np.split(mmcv.imread(str(picture))[CAPTION:].astype(int), 2, axis=1)
        original = mmcv.imread(str(photo)).astype(int)
        drawn = [np.abs(panel - original).max(axis=-1) > 60 for panel in panels]
        assert all(0.001 < mask.mean() < 0.9 for mask in drawn)
        assert (drawn[0] != drawn[1]).any()


def test_a_download_that_is_no_checkpoint(pruned, tmp_path):
    pointer = tmp_path / 'pointer.pth'
    pointer.write_text('version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(ValueError, match='pointer.pth is not a checkpoint that torch can read'):
        Detector(Config.fromfile(pruned[0]), str(pointer), device='cpu')


def test_class_names_of_the_config(photos, pruned, tmp_path):
    """Weights that say nothing of classes: mmdet would call them those of COCO."""
    config, _, model = pruned
    save_state_dict(tmp_path / 'bare.safetensors', model.state_dict(), {})
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    names = ('mask_weared_incorrect', 'with_mask', 'without_mask')
    for checkpoint in ('bare.safetensors', 'bare.pth'):
        cfg = Config.fromfile(config)
        detector = Detector(cfg, str(tmp_path / checkpoint), device='cpu')
        assert detector.visualizer.dataset_meta['classes'] == names
        boxes, count = detector.draw(photos[0], THRESHOLD)
        assert count == (predict(config, model, photos[0])['scores'] > THRESHOLD).sum() > 0
        width, height = Image.open(photos[0]).size
        assert boxes.shape == (height, width, 3) and boxes.dtype == np.uint8
        # Nothing is above this threshold, so nothing is drawn.
        picture, count = detector.draw(photos[0], 1.0)
        original = np.asarray(Image.open(photos[0]).convert('RGB')).astype(int)
        # The original mmengine resamples what it draws on, so edges may differ: means of blocks.
        blocks = [
            mmcv.imresize(pixels.astype(np.float32), (16, 16), interpolation='area')
            for pixels in (picture, original)
        ]
        assert count == 0 and np.abs(blocks[0] - blocks[1]).mean() < 4
        assert (picture != boxes).any()
    # Sizes from the checkpoint, where what training started from is not at hand.
    cfg.model.backbone.update(
        sizes='auto', init_cfg=dict(type='Pretrained', checkpoint='nowhere.safetensors')
    )
    detector = Detector(cfg, str(tmp_path / 'bare.pth'), title='auto', device='cpu')
    sizes = [tuple(ffn.sizes.values()) for ffn in find_ffns(detector.model)]
    assert sizes == [(19, 33), (20, 40)]
    assert detector.title == 'auto'
    # A grey format, which has no place for coloured boxes.
    grey = tmp_path / 'grey.pgm'
    Image.open(photos[0]).convert('L').save(grey)
    ((_, picture),) = name_pictures([grey], tmp_path / 'out').items()
    draw_detections(grey, [detector], picture, THRESHOLD)
    assert picture.name == 'grey.png' and Image.open(picture).mode == 'RGB'


def test_detectors_that_do_not_fit(dense, pruned):
    cfg = Config.fromfile(dense[0])
    with pytest.raises(ValueError, match="has no 'backbone.|the checkpoint has 19 inputs"):
        Detector(cfg, str(pruned[1]), device='cpu')
    with pytest.raises(ValueError, match=r'fc_cls.4.weight is \(4, 32\), not \(81, 32\)'):
        cfg = Config.fromfile(pruned[0])
        cfg.model.bbox_head.num_classes = 80
        Detector(cfg, str(pruned[1]), device='cpu')
    cfg = Config.fromfile(dense[0])
    cfg.test_dataloader.dataset.metainfo = dict(classes=('cat', 'dog'))
    state_dict = torch.load(dense[1])['state_dict']
    with pytest.raises(ValueError, match='dense: bbox_head has 80 classes and the data set names'):
        save_state_dict(dense[0].with_name('bare.safetensors'), state_dict, {})
        Detector(cfg, str(dense[0].with_name('bare.safetensors')), device='cpu')
    cfg.default_scope = 'mmpretrain'
    with pytest.raises(ValueError, match="its default_scope is 'mmpretrain', not 'mmdet'"):
        Detector(cfg, str(dense[1]), device='cpu')
    with pytest.raises(FileNotFoundError, match='no checkpoint nowhere.safetensors'):
        Detector(Config.fromfile(dense[0]), 'nowhere.safetensors', device='cpu')


def test_which_images_and_pictures(tmp_path):
    for name in ('a/1.jpg', 'a/2.PNG', 'a/notes.txt', 'b/1.jpg', 'empty/sub/3.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    a, b = tmp_path / 'a', tmp_path / 'b'
    images, skipped = find_inputs([a, str(a / '1.jpg')])
    assert images == [a / '1.jpg', a / '2.PNG']
    assert skipped == [f'{a}: 1 other file(s) skipped']
    assert find_inputs([tmp_path / 'empty' / 'sub'])[1] == []
    out = tmp_path / 'out'
    assert list(name_pictures(images, out).values()) == [out / '1.jpg', out / '2.PNG']
    with pytest.raises(FileNotFoundError, match='no file or folder .*none, .*3.jpg'):
        find_inputs([a, tmp_path / 'none', tmp_path / '3.jpg'])
    with pytest.raises(ValueError, match='empty has no image: their names end in .jpg'):
        find_inputs([tmp_path / 'empty'])
    with pytest.raises(ValueError, match='notes.txt is no image: their names end in .jpg'):
        find_inputs([a / 'notes.txt'])
    with pytest.raises(ValueError, match=r'a/1.jpg and .*b/1.jpg would both be drawn to .*1.jpg'):
        name_pictures(find_inputs([a, b])[0], out)
    with pytest.raises(ValueError, match=r'the picture of .*a/1.jpg would replace an image'):
        name_pictures(find_inputs([a])[0], a)


def test_in_the_page_of_a_run(dense, pruned, photos, tmp_path):
    """Two detectors of unlike classes, as it happens: each has its own names."""
    options = ['--dense', dense[1], '--dense-config', dense[0], '--images', *photos[:2]]
    tool = Path(__file__).parents[2] / 'tools' / 'report.py'
    done = run_tool([tool, pruned[1], '--out', tmp_path, *options])
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'index.html').read_text()
    assert 'Detections, dense against pruned' in page
    found = page.partition('<section id="samples">')[2].partition('</section>')[0]
    assert found.count('<img src="data:image/jpeg;base64,') == 2
    assert [photo.name in found for photo in photos] == [True, True, False]
    assert re.search(r'\d+ boxes dense, \d+ pruned', found)
    done = run_tool([tool, pruned[1], '--out', tmp_path, '--dense', dense[1]])
    assert done.returncode == 1 and 'needs images to draw in' in done.stderr


def test_images_of_an_annotation_file_are_found_in_folders(tmp_path):
    for name in ('train/1.jpg', 'val/1.jpg', 'val/2.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = tmp_path / 'val.json'

    def write(*names: str) -> None:
        images = [dict(id=number, file_name=name) for number, name in enumerate(names)]
        content = dict(images=images, annotations=[], categories=[dict(id=1, name='x')])
        listed.write_text(json.dumps(content))

    write('val/1.jpg')
    assert find_listed([tmp_path], listed) == [tmp_path / 'val' / '1.jpg']
    write('2.jpg', '1.jpg')
    folders = [tmp_path / 'train', tmp_path / 'val']
    assert find_listed(folders, listed) == [tmp_path / 'val/2.jpg', tmp_path / 'train/1.jpg']
    write('1.jpg', '3.jpg')
    with pytest.raises(FileNotFoundError, match='lists 3.jpg, which is in none of'):
        find_listed(folders, listed)
    with pytest.raises(FileNotFoundError, match='no folder .*2.jpg; images by a file'):
        find_listed([tmp_path / 'val' / '2.jpg'], listed)

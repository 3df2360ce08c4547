"""Draws what detectors find in pictures, one detector or two side by side."""

import copy
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmdet.apis import DetInferencer
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from mmengine.config import Config
from torch import nn

from mcf_mm.datasets.loading import LoadImageFromFile
from mcf_mm.files import whole_file
from mcf_mm.registry import split_type
from mcf_mm.weights.checkpoint import check_loaded, dataset_meta, readable

#: Height of the line of text above a picture, in pixels.
CAPTION = 28


class Detector(DetInferencer):
    """mmdet's inferencer, stricter about weights and better informed of class names.

    Weights that do not fit are an error. Class names are those of the checkpoint, or else those
    of the config; mmdet would call the classes of any other checkpoint those of COCO.

    Args:
        cfg: Config of a detector.
        checkpoint: Its weights, ``.pth`` or ``.safetensors``.
        title: What to call it. Defaults to the name of the config.
        device: Such as ``'cpu'`` or ``'cuda:0'``. Defaults to the best one there is.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: The config is not one of mmdet, the checkpoint is not one of this detector,
            or there is not a name for each class.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, title: str | None = None, device: str | None = None
    ):
        if cfg.get('default_scope') != 'mmdet':
            raise ValueError(
                f'{cfg.filename} is not the config of a detector: its default_scope is '
                f"{cfg.get('default_scope')!r}, not 'mmdet'"
            )
        self.title = title or Path(cfg.filename).stem
        cfg = copy.deepcopy(cfg)
        # The checkpoint has all weights; those that training started from may not be here.
        cfg.model.get('backbone', {}).pop('init_cfg', None)
        # Pictures are returned; the places where training would keep them are none here.
        cfg.setdefault('visualizer', dict(type='DetLocalVisualizer')).pop('vis_backends', None)
        with readable(checkpoint):
            super().__init__(cfg, checkpoint, device=device, show_progress=False)

    def _get_transform_idx(self, pipeline_cfg: list, name: str | tuple) -> int:
        # Versions of mmdet take other types here: only names, or names without scope and classes.
        names = (name,) if isinstance(name, str) else name
        for number, step in enumerate(pipeline_cfg):
            if split_type(step['type'])[1] in names:
                return number
        return -1

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict, cfg: Config) -> None:
        if 'state_dict' not in checkpoint:
            checkpoint = dict(state_dict=checkpoint)
        data = dataset_meta(cfg, checkpoint.get('meta', {}))
        checkpoint['meta'] = {**checkpoint.get('meta', {}), 'dataset_meta': data}
        super()._load_weights_to_model(model, checkpoint, cfg)
        check_loaded(model, checkpoint)
        names = model.dataset_meta['classes']
        for path, module in model.named_modules():
            if not path.endswith('bbox_head') or not hasattr(module, 'num_classes'):
                continue
            # A YOLOSHead may have outputs that are no label of the data set.
            number = len(getattr(module, 'class_ids', None) or range(module.num_classes))
            if number != len(names):
                raise ValueError(
                    f'{self.title}: {path} has {number} classes and the data set names '
                    f'{len(names)}; set metainfo=dict(classes=...) of test_dataloader.dataset'
                )

    def draw(self, image: Path, score_threshold: float = 0.3) -> tuple[np.ndarray, int]:
        """Detects in an image file and draws the boxes.

        Args:
            image: Image file.
            score_threshold: Boxes with a higher score are drawn. Defaults to 0.3.

        Returns:
            The picture, RGB ``(H, W, 3)``, uint8, in the size of the image, and the number of
            boxes in it.
        """
        result = self(
            str(image), return_vis=True, return_datasamples=True, pred_score_thr=score_threshold
        )
        scores = result['predictions'][0].pred_instances.scores
        return result['visualization'][0], int((scores > score_threshold).sum())


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files that a user speaks of.

    Args:
        inputs: Image files, and folders whose images are meant (not those of their subfolders).

    Raises:
        FileNotFoundError: Something is not there.
        ValueError: A folder has no images, or a file does not end as images do.
    """
    inputs = [Path(path) for path in inputs]
    if missing := [str(path) for path in inputs if not path.exists()]:
        raise FileNotFoundError(f'no file or folder {", ".join(missing)}')
    images: dict[Path, None] = {}  # a set that keeps its order
    for path in inputs:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
        if not found:
            what = 'has no image' if path.is_dir() else 'is no image'
            raise ValueError(f'{path} {what}: their names end in {", ".join(IMG_EXTENSIONS)}')
        images.update(dict.fromkeys(found))
    return list(images)


def name_pictures(images: Sequence[Path], out_dir: Path) -> dict[Path, Path]:
    """The picture to write for each image, by the name of the image (a ``.pgm`` becomes ``.png``).

    Raises:
        ValueError: Two pictures would have one name, or one would replace an image.
    """
    pictures: dict[Path, Path] = {}
    for image in images:
        # A .pgm file has no colours for the boxes.
        name = f'{image.stem}.png' if image.suffix.lower() == '.pgm' else image.name
        pictures[image] = out_dir / name
        if pictures[image].resolve() in {other.resolve() for other in images}:
            raise ValueError(f'{out_dir}: the picture of {image} would replace an image')
    by_picture: dict[Path, Path] = {}
    for image, picture in pictures.items():
        if other := by_picture.get(picture):
            raise ValueError(f'{other} and {image} would both be drawn to {picture}')
        by_picture[picture] = image
    return pictures


def draw_detections(
    image: Path, detectors: Sequence[Detector], picture: Path, score_threshold: float = 0.3
) -> list[int]:
    """Draws what each detector finds in an image, side by side when there are several.

    Args:
        image: Image file.
        detectors: One detector, or several to compare: then each has its title, size and number
            of boxes above it.
        picture: File to write, which appears whole or not at all.
        score_threshold: Boxes with a higher score are drawn. Defaults to 0.3.

    Returns:
        Number of boxes of each detector.

    Raises:
        ValueError: The image is empty, truncated or cannot be decoded.
    """
    # Asked first: mmdet would draw boxes into the grey that OpenCV makes of a truncated JPEG.
    LoadImageFromFile().transform(dict(img_path=str(image)))
    panels, counts = zip(
        *(detector.draw(image, score_threshold) for detector in detectors), strict=True
    )
    if len(detectors) > 1:
        panels = [_add_caption(*triple) for triple in zip(panels, detectors, counts, strict=True)]
    _write_picture(picture, np.hstack(panels))
    return list(counts)


def _add_caption(panel: np.ndarray, detector: Detector, count: int) -> np.ndarray:
    parameters = sum(parameter.numel() for parameter in detector.model.parameters())
    text = f'{detector.title}: {parameters / 1e6:.3f} M parameters, {count} boxes'
    font, width = cv2.FONT_HERSHEY_SIMPLEX, panel.shape[1]
    scale = min(0.6, (width - 8) / cv2.getTextSize(text, font, 1.0, 1)[0][0])
    strip = np.full((CAPTION, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (4, CAPTION - 9), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, panel])


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes an RGB picture, whole or not at all."""
    with whole_file(path) as partial:
        mmcv.imwrite(np.ascontiguousarray(pixels[..., ::-1]), str(partial))

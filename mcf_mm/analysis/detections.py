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

from mcf_mm.datasets.coco_file import CocoFile
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

    def draw(
        self, image: Path | np.ndarray, score_threshold: float = 0.3
    ) -> tuple[np.ndarray, int]:
        """Detects in an image and draws the boxes.

        Args:
            image: Image file, or pixels, BGR ``(H, W, 3)``, uint8, as OpenCV reads them.
            score_threshold: Boxes with a higher score are drawn. Defaults to 0.3.

        Returns:
            The picture, RGB ``(H, W, 3)``, uint8, in the size of the image, and the number of
            boxes in it.
        """
        if isinstance(image, np.ndarray):
            sample = self(image, return_datasamples=True)['predictions'][0]
            # mmdet would draw on BGR as if it were RGB, with the colours of the boxes exchanged.
            pixels = np.ascontiguousarray(image[..., ::-1])
            self.visualizer.add_datasample(
                self.title, pixels, sample, draw_gt=False, pred_score_thr=score_threshold
            )
            picture = self.visualizer.get_image()
        else:
            result = self(
                str(image), return_vis=True, return_datasamples=True, pred_score_thr=score_threshold
            )
            sample, picture = result['predictions'][0], result['visualization'][0]
        return picture, int((sample.pred_instances.scores > score_threshold).sum())


def find_inputs(
    inputs: Sequence[str | Path], endings: Sequence[str] = IMG_EXTENSIONS
) -> tuple[list[Path], list[str]]:
    """The files that a user speaks of.

    Args:
        inputs: Files, and folders whose files are meant (not those of their subfolders).
        endings: How their names may end. Defaults to those of images.

    Returns:
        The files, and a line about each folder of which something is left out.

    Raises:
        FileNotFoundError: Something is not there.
        ValueError: A folder has no such file, or a file ends otherwise.
    """
    inputs = [Path(path) for path in inputs]
    if missing := [str(path) for path in inputs if not path.exists()]:
        raise FileNotFoundError(f'no file or folder {", ".join(missing)}')
    files: dict[Path, None] = {}  # a set that keeps its order
    skipped = []
    for path in inputs:
        entries = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [
            entry for entry in entries if entry.suffix.lower() in endings and not entry.is_dir()
        ]
        if not found:
            what = 'has no image' if path.is_dir() else 'is no image'
            if set(endings) > set(IMG_EXTENSIONS):
                what += ' or video'
            raise ValueError(f'{path} {what}: their names end in {", ".join(endings)}')
        folders = sum(entry.is_dir() for entry in entries)
        if others := len(entries) - len(found) - folders:
            skipped.append(f'{path}: {others} other file(s) skipped')
        if folders:
            skipped.append(
                f'{path}: {folders} folder(s) in it skipped; name them to have them drawn'
            )
        files.update(dict.fromkeys(found))
    return list(files), skipped


def find_listed(folders: Sequence[str | Path], annotations: str | Path) -> list[Path]:
    """The images that an annotation file of COCO lists, in some folders.

    Args:
        folders: Folders that its file names begin at.
        annotations: COCO's JSON.

    Raises:
        FileNotFoundError: An image is in none of the folders, or a folder is not there.
        ValueError: The file is no such one.
    """
    folders = [Path(folder) for folder in folders]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise FileNotFoundError(f'no folder {", ".join(missing)}; images by a file are of folders')
    found = []
    for image in CocoFile(str(annotations)).dataset['images']:
        places = (folder / image['file_name'] for folder in folders)
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f'{annotations} lists {image["file_name"]}, which is in none of '
                f'{", ".join(map(str, folders))}'
            )
        found.append(path)
    return found


def name_pictures(
    images: Sequence[Path], out_dir: Path, videos: Sequence[str] = ()
) -> dict[Path, Path]:
    """The picture or video to write for each file, by its name.

    A ``.pgm`` becomes ``.png``, as it has no place for coloured boxes, and every video ``.mp4``.

    Args:
        images: Files of images, and of videos.
        out_dir: Folder for the pictures.
        videos: How the names of videos end. Defaults to no videos.

    Raises:
        ValueError: Two pictures would have one name, or one would replace an image.
    """
    pictures: dict[Path, Path] = {}
    for image in images:
        ending = image.suffix.lower()
        new = '.mp4' if ending in videos else '.png' if ending == '.pgm' else image.suffix
        pictures[image] = out_dir / f'{image.stem}{new}'
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
    pixels, counts = draw_panels(image, detectors, score_threshold)
    _write_picture(picture, pixels)
    return counts


def draw_panels(
    image: Path | np.ndarray, detectors: Sequence[Detector], score_threshold: float = 0.3
) -> tuple[np.ndarray, list[int]]:
    """What each detector finds, side by side with a caption each when there are several.

    Args:
        image: As for :meth:`Detector.draw`.
        detectors: One detector or several.
        score_threshold: Boxes with a higher score are drawn. Defaults to 0.3.

    Returns:
        The picture, RGB, uint8, and the number of boxes of each detector.
    """
    panels, counts = zip(
        *(detector.draw(image, score_threshold) for detector in detectors), strict=True
    )
    if len(detectors) > 1:
        panels = [_add_caption(*triple) for triple in zip(panels, detectors, counts, strict=True)]
    return np.hstack(panels), list(counts)


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

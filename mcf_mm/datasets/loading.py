"""Reads image files and says which one cannot be read."""

import io
import logging

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from PIL import Image

from mcf_mm.registry import TRANSFORMS

JPEG_START, JPEG_END = b'\xff\xd8', b'\xff\xd9'


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """mmcv's LoadImageFromFile, except that a file it cannot use is named with what is wrong.

    For a file without a byte mmcv shows an assertion of OpenCV's that names no file. A truncated
    JPEG is refused: OpenCV before 4.12 fills what is missing with grey and says nothing, and a
    detector would learn that there are objects in the grey. Grey, palette and CMYK files become
    three channels, as in mmcv.

    Where the dataset says which size an image has, as those of mmdet do from the annotations, it
    must be the size of the file: boxes on an image that was turned or resized are wrong.

    ``tools/train.py`` and ``tools/test.py`` take this class where a config has mmcv's, for mmdet
    and mmpretrain alike.

    Args:
        ignore_empty: Whether such files are left out with a warning instead: in training, the
            dataset takes another image. Evaluation still stops. Defaults to False.
        **kwargs: As for mmcv's LoadImageFromFile.

    Raises:
        FileNotFoundError: There is no such file (MMEngine names it).
        ValueError: The file is empty, truncated or no image; or of another size than ``width`` and
            ``height`` say.

    Example:
        >>> train_pipeline = [dict(type='mcf_mm.LoadImageFromFile', ignore_empty=True)]
    """

    def __init__(self, *args, ignore_empty: bool = False, **kwargs):
        # mmcv's own way of leaving files out says nothing.
        super().__init__(*args, ignore_empty=False, **kwargs)
        self.leave_out = ignore_empty

    def transform(self, results: dict) -> dict | None:
        """Adds ``img`` (H, W, 3), ``img_shape`` and ``ori_shape``; reads ``img_path``."""
        path = results['img_path']
        try:
            img = self._decode(path)
        except (OSError, ValueError) as error:
            if not self.leave_out:
                raise
            print_log(f'left out: {error}', logger='current', level=logging.WARNING)
            return None
        self._check_size(path, img.shape[:2], (results.get('height'), results.get('width')))
        results['img'] = img.astype(np.float32) if self.to_float32 else img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def _check_size(self, path: str, size: tuple, labelled: tuple) -> None:
        if None in labelled or size == labelled:
            return
        if size == labelled[::-1]:
            advice = (
                'The file was turned, by its EXIF orientation or otherwise: save it upright '
                'without EXIF (PIL.ImageOps.exif_transpose) and label it so, or set '
                "color_type='color_ignore_orientation' if the boxes are those of the pixels as "
                'stored'
            )
        else:
            advice = (
                'The image was resized after labelling: use the original, or scale width, height, '
                'boxes and masks of its annotations'
            )
        raise ValueError(
            f'{path}: the image is {size[1]} x {size[0]} pixels (width x height) and the '
            f'annotations are for {labelled[1]} x {labelled[0]}. {advice}'
        )

    def _decode(self, path: str) -> np.ndarray:
        if self.file_client_args is not None:  # deprecated, but mmcv takes it
            content = fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        else:
            content = fileio.get(path, backend_args=self.backend_args)
        if not content:
            raise ValueError(f'{path}: the image file is empty (0 bytes)')
        if problem := _truncation(content):
            raise ValueError(f'{path}: the JPEG file of {len(content)} bytes is {problem}')
        try:
            img = mmcv.imfrombytes(content, self.color_type, backend=self.imdecode_backend)
        except Exception as error:  # OpenCV's, Pillow's and tifffile's have nothing in common
            raise ValueError(f'{path}: the image cannot be decoded: {error}') from error
        if img is None:
            raise ValueError(
                f'{path}: the {len(content)} bytes are damaged or no image that '
                f'{self.imdecode_backend} knows'
            )
        return img


def _truncation(content: bytes) -> str | None:
    """What is wrong with a JPEG file without an end; None if nothing is.

    A look at the last bytes costs nothing; only a file that does not end as it should is decoded
    here, for some whole ones have other data behind their end.
    """
    if not content.startswith(JPEG_START) or content.rstrip(b'\0').endswith(JPEG_END):
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except OSError as error:
        return f'truncated or damaged: {error}'
    return None

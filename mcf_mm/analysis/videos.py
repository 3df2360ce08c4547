"""Draws what detectors find in videos, one detector or two side by side."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mcf_mm.analysis.detections import Detector, draw_panels
from mcf_mm.files import whole_file

#: Containers that say how many frames they have, so that a damaged one is noticed.
VIDEO_EXTENSIONS = ('.mp4', '.m4v', '.mov', '.avi')


class VideoFrames:
    """Frames of a video, BGR ``(H, W, 3)``, uint8, in order.

    Args:
        path: Video file.

    Attributes:
        fps: Frames per second.

    Raises:
        ValueError: The file is empty or cannot be decoded, does not say its frames per second, or
            ends more than a second before its header says. The last shows when the frames have
            been read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.stat().st_size == 0:
            raise ValueError(f'{path}: the video file is empty (0 bytes)')
        with self._open() as capture:
            self.fps = capture.get(cv2.CAP_PROP_FPS)
            self.promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            readable = capture.isOpened() and capture.read()[0]
        if not readable:
            raise ValueError(
                f'{path}: OpenCV cannot decode a frame of this file of {self.path.stat().st_size} '
                'bytes; it is damaged, incomplete or no video'
            )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(
                f'{path}: the header says {self.fps} frames per second; it must be above 0'
            )

    def __len__(self) -> int:
        """Number of frames by the header."""
        return self.promised

    def __iter__(self) -> Iterator[np.ndarray]:
        number = 0
        with self._open() as capture:
            while True:
                found, frame = capture.read()
                if not found:
                    break
                number += 1
                yield frame
        # Some headers count frames that are never shown, so a few may lack; callers say so.
        if self.promised - number > self.fps:
            raise ValueError(
                f'{self.path}: only {number} of {self.promised} frames can be decoded; the video '
                'is damaged or incomplete'
            )

    @contextmanager
    def _open(self) -> Iterator[cv2.VideoCapture]:
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        try:
            yield capture
        finally:
            capture.release()


class VideoFile:
    """Writes an MPEG-4 video frame by frame.

    Args:
        path: File to write, ``.mp4``.
        fps: Frames per second.
    """

    def __init__(self, path: Path, fps: float):
        self.path, self.fps = path, fps
        self.writer: cv2.VideoWriter | None = None
        self.number = 0

    def write(self, pixels: np.ndarray) -> None:
        """Adds a picture, RGB ``(H, W, 3)``, uint8; odd sides get a white row or column."""
        height, width = pixels.shape[:2]
        bottom, right = height % 2, width % 2  # the format has even sides
        pixels = cv2.copyMakeBorder(
            np.ascontiguousarray(pixels[..., ::-1]),
            *(0, bottom, 0, right),
            cv2.BORDER_CONSTANT,
            value=(255, 255, 255),
        )
        if self.writer is None:
            self.writer = cv2.VideoWriter(
                str(self.path),
                cv2.CAP_FFMPEG,
                cv2.VideoWriter_fourcc(*'mp4v'),
                self.fps,
                (width + right, height + bottom),
            )
            if not self.writer.isOpened():
                raise OSError(f'{self.path}: OpenCV cannot write an MPEG-4 video here')
        self.writer.write(pixels)
        self.number += 1

    def close(self) -> None:
        """Ends the file.

        Raises:
            OSError: It does not hold what was written; OpenCV does not say when a disk is full.
        """
        if self.writer is not None:
            self.writer.release()
        written = len(VideoFrames(self.path)) if self.number else 0
        if written != self.number:
            raise OSError(f'{self.path} holds {written} of {self.number} frames: is the disk full?')


def draw_video(
    video: Path,
    detectors: Sequence[Detector],
    out: Path,
    score_threshold: float = 0.3,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int, list[int]]:
    """Draws what each detector finds in each frame, side by side when there are several.

    Args:
        video: Video file; its sound is not kept.
        detectors: As for :func:`mcf_mm.analysis.detections.draw_detections`.
        out: Video to write, ``.mp4``, as many frames per second; it appears whole or not at all.
        score_threshold: Boxes with a higher score are drawn. Defaults to 0.3.
        progress: Called after each frame with its number and that of all. Defaults to None.

    Returns:
        Number of frames, how many there are by the header, and the boxes of each detector in all.

    Raises:
        OSError: The video cannot be written.
        ValueError: The video is empty, damaged, or ends too early.
    """
    frames = VideoFrames(video)
    totals = [0] * len(detectors)
    with whole_file(out) as partial:
        file = VideoFile(partial, frames.fps)
        try:
            for number, frame in enumerate(frames, start=1):
                pixels, counts = draw_panels(frame, detectors, score_threshold)
                file.write(pixels)
                totals = [total + count for total, count in zip(totals, counts, strict=True)]
                if progress:
                    progress(number, max(number, len(frames)))
        except BaseException:
            if file.writer is not None:
                file.writer.release()
            raise
        file.close()
    return file.number, len(frames), totals

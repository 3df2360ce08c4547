"""Videos through two detectors: as many frames, side by side, whole or not at all."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from detectors import ROOT, THRESHOLD
from fork_server import run_tool
from mmengine.config import Config

from mcf_mm.analysis.detections import CAPTION, Detector, draw_panels
from mcf_mm.analysis.videos import VideoFile, VideoFrames, draw_video

SIZE = (90, 121)  # odd, which MPEG-4 has not


def write(path: Path, photos: list[Path], repeats: int = 1, codec: str = 'mp4v') -> Path:
    """A video of photos with 12.5 frames per second."""
    width, height = 120, 90
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 12.5, (width, height)
    )
    for _ in range(repeats):
        for photo in photos:
            writer.write(mmcv.imresize(mmcv.imread(str(photo)), (width, height)))
    writer.release()
    return path


def coarse(pixels: np.ndarray) -> np.ndarray:
    """A quarter of the sides: what compression does to single pixels is no longer seen."""
    return cv2.resize(
        pixels.astype(np.float32), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA
    )


@pytest.fixture(scope='module')
def video(photos, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp('video') / 'walk.avi', photos, codec='MJPG')


def test_side_by_side_with_the_tool(video, photos, dense, pruned, tmp_path):
    """A folder with a video, a photo, a damaged video and what is neither."""
    folder = tmp_path / 'folder'
    (folder / 'more').mkdir(parents=True)
    (folder / 'walk.avi').write_bytes(video.read_bytes())
    (folder / 'broken.mp4').write_bytes(video.read_bytes()[:500])
    (folder / 'empty.mov').write_bytes(b'')
    (folder / 'photo.jpg').write_bytes(photos[0].read_bytes())
    (folder / 'notes.txt').write_text('neither')
    out = tmp_path / 'out'
    done = run_tool(
        [ROOT / 'tools' / 'detect.py', folder, '--out', out, '--device', 'cpu']
        + ['--config', dense[0], '--checkpoint', dense[1], '--against', *pruned[:2]]
        + ['--score-thr', THRESHOLD]
    )
    assert done.returncode == 1
    for text in (
        f'{folder}: 1 other file(s) skipped',
        f'{folder}: 1 folder(s) in it skipped',
        f'error: {folder / "broken.mp4"}: OpenCV cannot decode a frame of this file of 500 bytes',
        f'error: {folder / "empty.mov"}: the video file is empty (0 bytes)',
        'error: 2 of 4 files could not be read or drawn',
    ):
        assert text in done.stderr
    assert sorted(file.name for file in out.iterdir()) == ['photo.jpg', 'walk.mp4']
    assert f' in 3 frames, drawn to {out / "walk.mp4"}' in done.stdout

    drawn, original = VideoFrames(out / 'walk.mp4'), VideoFrames(video)
    assert drawn.fps == original.fps == 12.5 and len(drawn) == len(original) == 3
    detectors = [
        Detector(Config.fromfile(config), str(weights), device='cpu')
        for config, weights in (dense[:2], pruned[:2])
    ]
    for picture, frame in zip(drawn, original, strict=True):
        height, width = frame.shape[:2]
        assert picture.shape == (height + CAPTION, 2 * width, 3)
        panels = picture[CAPTION:, :, ::-1].astype(int)  # RGB
        expected = draw_panels(frame, detectors, float(THRESHOLD))[0][CAPTION:].astype(int)
        assert np.median(np.abs(coarse(panels) - coarse(expected))) < 5
        left, right = np.split(panels, 2, axis=1)
        assert np.abs(left - right).max() > 60


def test_frames_are_detected_as_image_files_are(photos, dense):
    detector = Detector(Config.fromfile(dense[0]), str(dense[1]), device='cpu')
    from_file, count = detector.draw(photos[0], THRESHOLD)
    from_pixels, same = detector.draw(mmcv.imread(str(photos[0])), THRESHOLD)
    assert count == same > 1
    assert np.array_equal(from_file, from_pixels)


def test_a_video_that_ends_early(photos, dense, tmp_path):
    """40 frames by the header, of which the last 20 are zeros."""
    whole = write(tmp_path / 'whole.mp4', photos[:2], repeats=20)
    data = bytearray(whole.read_bytes())
    start, end = data.index(b'mdat'), data.index(b'moov')  # what is coded, and then where it is
    middle = (start + end) // 2
    data[middle:end] = bytes(end - middle)
    (tmp_path / 'cut.mp4').write_bytes(data)
    detector = Detector(Config.fromfile(dense[0]), str(dense[1]), device='cpu')
    seen = []
    out = tmp_path / 'out' / 'cut.mp4'
    with pytest.raises(ValueError, match=r'cut.mp4: only \d+ of 40 frames can be decoded'):
        draw_video(tmp_path / 'cut.mp4', [detector], out, progress=lambda *pair: seen.append(pair))
    assert seen[0] == (1, 40) and len(seen) < 28
    assert not list((tmp_path / 'out').iterdir())
    # Less than a second that lacks may be the header's fault: it is drawn, and told.
    data = bytearray(whole.read_bytes())
    data[end - (end - start) // 8 : end] = bytes((end - start) // 8)
    (tmp_path / 'cut.mp4').write_bytes(data)
    frames, promised, _ = draw_video(tmp_path / 'cut.mp4', [detector], out)
    assert 28 <= frames < promised == 40


def test_odd_sides_lose_nothing(tmp_path):
    file = VideoFile(tmp_path / 'odd.mp4', fps=5)
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0] = 200  # red
    for _ in range(2):
        file.write(pixels)
    file.close()
    frames = list(VideoFrames(tmp_path / 'odd.mp4'))
    assert len(frames) == 2 and frames[0].shape == (90, 122, 3)
    assert frames[0][..., 2].mean() > 150 > 60 > frames[0][..., 0].mean()


def test_an_unknown_ending(video, dense, tmp_path):
    path = tmp_path / 'walk.gif'
    path.write_bytes(video.read_bytes())
    done = run_tool(
        [ROOT / 'tools' / 'detect.py', path, '--out', tmp_path / 'out']
        + ['--config', dense[0], '--checkpoint', dense[1]]
    )
    assert done.returncode == 1
    assert f'error: {path} is no image or video: their names end in .jpg' in done.stderr
    assert '.mp4' in done.stderr and not (tmp_path / 'out').exists()

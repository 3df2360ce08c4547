"""The image files of a folder, found by the names that annotations give them."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
#: EXIF orientations that swap width and height.
TURNED = (5, 6, 7, 8)
EXIF_ORIENTATION = 0x0112


class ImageFiles:
    """The image files below a folder.

    Args:
        folder: Folder, searched with all that is in it.

    Attributes:
        names (list[str]): Paths from the folder on, with "/", sorted.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no image, or two images have the same name with other endings.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f'no folder of images {folder}')
        self.names = sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob('*')
            if path.suffix.lower() in SUFFIXES
        )
        if not self.names:
            raise ValueError(f'{folder} has no images; looked for {", ".join(SUFFIXES)}')
        self._known = set(self.names)
        self._by_stem: dict[str, list[str]] = {}
        for name in self.names:
            self._by_stem.setdefault(stem(name), []).append(name)

    def find(self, name: str) -> str | None:
        """The name itself where there is such a file; None otherwise."""
        return name if name in self._known else None

    def find_stem(self, path: str) -> str | None:
        """The image whose path is this one but for the ending; None where there is none.

        Raises:
            ValueError: There are several.
        """
        found = self._by_stem.get(stem(path), [])
        if len(found) > 1:
            raise ValueError(
                f'{self.folder}: {path} may belong to any of {found}: give each its own name'
            )
        return found[0] if found else None

    def size(self, name: str) -> tuple[int, int]:
        """Width and height in pixels, turned by EXIF as mmcv does when it loads the image.

        Raises:
            ValueError: The file is no image.
        """
        path = self.folder / name
        try:
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f'{path}: the file is damaged or no image: {error}') from error
        return (height, width) if turned else (width, height)


def stem(name: str) -> str:
    """A path with "/" without the ending of its last part."""
    folder, slash, last = name.rpartition('/')
    return folder + slash + last.rpartition('.')[0]

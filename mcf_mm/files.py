"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name to write to; the file gets its own when the context ends well.

    So it appears whole or not at all. The folder is made if need be; the temporary name has the
    same ending, by which some writers choose the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        # As the umask says: safetensors leaves files that their owner alone can read.
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, whole or not at all; ``indent`` as in :func:`json.dumps`."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=indent) + '\n', encoding='utf-8')

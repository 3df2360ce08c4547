"""Scores that a database did not take, kept in files until the next start."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mcf_mm.files import write_json


def write_pending(out_dir: str | Path, kept: Mapping[str, Any]) -> Path:
    """Keep the score of a trial in ``pending_<number>.json``, one file for each worker's trial.

    Args:
        out_dir: Folder.
        kept: ``study``, ``number``, ``place``, ``claim``, ``x`` and ``score`` of the trial.
    """
    path = Path(out_dir) / f'pending_{kept["number"]}.json'
    write_json(path, kept)
    return path


def read_pending(out_dir: str | Path, study: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a study in a folder, and what they have.

    Raises:
        ValueError: A file is damaged.
    """
    for path in sorted(Path(out_dir).glob('pending_*.json')):
        try:
            kept = json.loads(path.read_text(encoding='utf-8'))
            kept['score'] = float(kept['score'])
            missing = {'study', 'number', 'place', 'claim', 'x'} - set(kept)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is no score as a search keeps it: {error!r}') from None
        if missing:
            raise ValueError(f'{path} is no score as a search keeps it: no {sorted(missing)}')
        if kept['study'] == study:
            yield path, kept

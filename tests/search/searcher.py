"""A worker of a search without a network: ``searcher.py URL FOLDER TRIALS [setting=value ...]``.

Each trial that it evaluates becomes a line of ``FOLDER/evaluated.jsonl``.
"""

import json
import os
import sys
import time
from pathlib import Path

from mcf_mm.search.storage import StorageLost
from mcf_mm.search.study import Search

NAMES = ['a.heads', 'a.hidden', 'b.heads', 'b.hidden', 'tokens']


def score_of(x: dict[str, float]) -> float:
    return -sum((value - 0.2 * place) ** 2 for place, value in enumerate(x.values()))


def search(url: str, folder: Path, **settings) -> Search:
    facts = dict(budget='macs=60%', network='abc', dims=['heads']) | settings.pop('facts', {})
    return Search(url, 'mcf_mm', facts, NAMES, folder, **settings)


def evaluate(folder: Path, seconds: float = 0.0):
    def score(x):
        with (folder / 'evaluated.jsonl').open('a') as file:
            file.write(json.dumps(dict(pid=os.getpid(), x=x)) + '\n')
        time.sleep(seconds)
        return score_of(x)

    return score


def main(url: str, folder: str, trials: str, *more: str) -> None:
    settings = dict(part.split('=') for part in more)
    seconds = float(settings.pop('seconds', 0))
    patience = float(settings.pop('patience', 60))
    folder = Path(folder)
    try:
        own = search(url, folder, resume=True, patience=patience, **settings)
        tried = own.run(int(trials), evaluate(folder, seconds))
    except StorageLost as error:
        sys.exit(f'error: {error}')
    print(f'{len(tried)} trials are complete')


if __name__ == '__main__':
    main(*sys.argv[1:])

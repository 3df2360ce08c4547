"""Pages in headless Chromium: what they look like, and what has become of them when shown."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
#: Runs where the page forbids scripts, in a copy that does not: what a page says of itself.
PROBE = """
<script>
addEventListener('load', () => {
  const broken = [...document.images].filter(image => !image.complete || !image.naturalWidth);
  const fetched = performance.getEntriesByType('resource').map(entry => entry.name);
  const root = document.documentElement;
  const facts = {
    broken: broken.length,
    images: document.images.length,
    fetched: fetched.filter(name => !name.startsWith('data:')),
    width: innerWidth,
    content: root.scrollWidth,
    headings: [...document.querySelectorAll('h2')].map(heading => heading.textContent),
  };
  const probe = document.createElement('pre');
  probe.id = 'probe';
  probe.textContent = 'PROBE' + JSON.stringify(facts) + 'END';
  document.body.append(probe);
});
</script>
"""


def chromium() -> str:
    """The browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f'the page is not looked at: no {" or ".join(NAMES)} is installed')
    return found


def browse(page: Path, folder: Path, *options: str) -> str:
    """What Chromium prints for a page, with a new profile in ``folder``.

    Args:
        page: HTML file.
        folder: Folder for the profile, which is removed.
        *options: ``'--dump-dom'``, or ``f'--screenshot={path}'`` and ``'--window-size=390,800'``.
    """
    profile = folder / 'profile'
    command = [
        chromium(),
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
        '--hide-scrollbars',
        f'--user-data-dir={profile}',
        *options,
        page.absolute().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(profile, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(page: Path, folder: Path, width: int, height: int) -> np.ndarray:
    """Pixels of a page, RGB ``(H, W, 3)``."""
    path = folder / f'{page.stem}_{width}.png'
    browse(page, folder, f'--screenshot={path}', f'--window-size={width},{height}')
    return np.asarray(Image.open(path).convert('RGB'))

"""New interpreters and made-up installations for tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, *folders: Path, options: tuple[str, ...] = ()):
    """Run ``code`` in a new interpreter with ``folders`` and this checkout first on the path."""
    path = f'import sys; sys.path[:0] = {[str(folder) for folder in (*folders, ROOT)]}\n'
    command = [sys.executable, *options, '-c', path + code]
    return subprocess.run(command, capture_output=True, text=True)


def fake_distribution(folder: Path, name: str, version: str) -> None:
    """Write what pip notes of an installed distribution."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')

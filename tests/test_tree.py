"""What holds for all files."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 350
SUFFIXES = {'.py', '.sh', '.md', '.j2', '.toml'}
#: What older versions of mcf_mm wrote, kept as it was.
EXCEPTED = ROOT / 'tests' / 'stored'


def test_no_file_is_longer_than_the_limit():
    folders = ('mcf_mm', 'tools', 'tests', 'configs')
    paths = [*ROOT.glob('*'), *(path for name in folders for path in (ROOT / name).rglob('*'))]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding='utf-8').splitlines())
        for path in paths
        if path.suffix in SUFFIXES and path.is_file() and EXCEPTED not in path.parents
    }
    assert len(lengths) > 300
    long = {path: length for path, length in lengths.items() if length > LIMIT}
    assert not long, f'files have at most {LIMIT} lines: part them by subject'

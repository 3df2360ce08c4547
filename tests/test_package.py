"""Sdist and wheel: built from what git tracks, installed in a new environment and used there."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image

from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.shipped import command_name
from mcf_mm.weights.files import read_header

ROOT = Path(__file__).resolve().parents[1]
#: Where the packages of this environment are.
SITE = Path(torch.__file__).parents[1]
#: Builds with the setuptools of this environment; nothing is downloaded.
BUILD = 'import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])'
#: A network on which nothing takes long.
MICRO = 'configs/demo/deit-micro_digits.py'


def run(*command: str | Path, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    """Run a command that has to end with ``status``, without this checkout on Python's path."""
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope='module')
def tracked() -> list[str]:
    """Files that git tracks and that are there."""
    done = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'no git checkout, so what belongs to it is not known: {done.stderr}')
    return [name for name in done.stdout.split('\0') if name and (ROOT / name).is_file()]


@pytest.fixture(scope='module')
def tree(tracked, tmp_path_factory) -> Path:
    """A checkout with nothing else in it."""
    found = importlib.metadata.version('setuptools')
    if Version(found) < Version('77'):
        pytest.skip(f'pyproject.toml builds with setuptools 77 or newer, {found} is here')
    folder = tmp_path_factory.mktemp('tree')
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def sdist(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('sdist')
    run(sys.executable, '-c', BUILD.format('sdist'), folder, cwd=tree)
    return next(folder.glob('*.tar.gz'))


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the sdist, so that has all it takes."""
    folder = tmp_path_factory.mktemp('wheel')
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter='data')
    source = folder / sdist.name.removesuffix('.tar.gz')
    run(sys.executable, '-c', BUILD.format('wheel'), folder, cwd=source)
    return next(folder.glob('*.whl'))


class Environment:
    """A new environment, whose other packages are those of the one that runs the tests.

    ``python`` and ``mcf_mm`` are its programs, ``site`` is the folder of its packages.
    """

    def __init__(self, folder: Path):
        venv.create(folder, symlinks=True, with_pip=True)
        paths = sysconfig.get_paths('venv', vars=dict(base=str(folder), platbase=str(folder)))
        self.python = Path(paths['scripts']) / 'python'
        self.mcf_mm = Path(paths['scripts']) / 'mcf-mm'
        self.site = Path(paths['purelib'])
        # Python 3.11 and older put one there that is too old to build with.
        run(self.python, '-m', 'pip', 'uninstall', '--yes', '--quiet', 'setuptools', cwd=folder)
        self.take_packages_from(SITE)

    def take_packages_from(self, folder: Path) -> None:
        """After its own ones; what ``.pth`` files there add, editable installs, is not seen."""
        (self.site / 'others.pth').write_text(str(folder))

    def install(self, *what: str | Path, cwd: Path) -> None:
        offline = ['--no-deps', '--no-index', '--no-build-isolation', '--no-cache-dir', '--quiet']
        run(self.python, '-m', 'pip', 'install', *offline, *what, cwd=cwd)


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp('environment'))


@pytest.fixture
def installed(environment, wheel, tmp_path) -> Environment:
    """With the wheel in it, and all packages of this environment."""
    if not environment.mcf_mm.exists():
        environment.install(wheel, cwd=tmp_path)
    environment.take_packages_from(SITE)
    return environment


def test_the_sdist_has_all_but_the_tests(sdist, tracked):
    with tarfile.open(sdist) as tar:
        names = {member.name.partition('/')[2] for member in tar if member.isfile()}
    kept = {name for name in tracked if name.startswith(('mcf_mm/', 'configs/', 'tools/'))} | {
        'README.md',
        'LICENSE',
        'pyproject.toml',
        'model-index.yml',
    }
    made = {name for name in names - kept if name.startswith('mcf_mm.egg-info/')}
    assert kept <= names
    assert names - kept - made <= {'PKG-INFO', 'setup.cfg'}


def test_the_wheel_has_configs_and_scripts_as_packages_of_openmmlab(wheel, tracked):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    scripts = [name for name in tracked if name.startswith('tools/') and name.endswith('.py')]
    configs = [name for name in tracked if name.startswith('configs/')]
    package = [name for name in tracked if name.startswith('mcf_mm/')]
    assert 'tools/train.py' in scripts and 'configs/multi_dim/README.md' in configs
    shipped = {f'mcf_mm/.mim/{name}' for name in [*scripts, *configs, 'model-index.yml']}
    assert names == {*package, *shipped}


def test_torch_alone(installed, tmp_path):
    """In an environment where no package of OpenMMLab can be imported."""
    others = tmp_path / 'others'
    others.mkdir()
    for entry in SITE.iterdir():
        if not entry.name.lower().startswith(('mm', 'onedl')):
            (others / entry.name).symlink_to(entry)
    installed.take_packages_from(others)
    code = """
import timm, torch, mcf_mm
assert '.mim' not in mcf_mm.__file__
model = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2)
batches = [torch.randn(4, 3, 32, 32)]
structure = mcf_mm.prune(model, batches, criterion='magnitude', ratios=dict(hidden=0.5))
print(mcf_mm.__file__, structure.sizes['blocks.0.mlp'])
try:
    import mmengine
except ImportError as error:
    print(error)
"""
    done = run(installed.python, '-c', code, cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first == f"{installed.site / 'mcf_mm' / '__init__.py'} {{'hidden': 384}}"
    assert second == "No module named 'mmengine'"
    assert '  prune ' in run(installed.mcf_mm, '--help', cwd=tmp_path).stdout
    failed = run(installed.mcf_mm, 'train', MICRO, cwd=tmp_path, status=1)
    assert "error: No module named 'mmengine'. mcf_mm.pruning works with torch" in failed.stderr
    assert "pip install 'onedl-mmcv<2.4,>=2.3' 'onedl-mmdetection" in failed.stderr
    assert 'mcf-mm[' not in failed.stderr


def test_help_lists_every_script(installed, tracked, tmp_path):
    told = run(installed.mcf_mm, '--help', cwd=tmp_path).stdout
    for name in tracked:
        if name.startswith('tools/') and name.count('/') == 1 and name.endswith('.py'):
            (line,) = (
                line
                for line in told.splitlines()
                if line.split()[:1] == [command_name(Path(name).stem)]
            )
            assert line.endswith('.') and len(line.split()) > 4
    folder = installed.site / 'mcf_mm' / '.mim' / 'configs'
    assert run(installed.mcf_mm, 'configs', cwd=tmp_path).stdout == f'{folder}\n'


@pytest.mark.parametrize(
    'arguments, problem',
    [
        (['prunes', 'x.py'], "there is no command 'prunes'"),
        ([], 'a command is missing'),
        (['configs', 'mcf'], 'configs takes no arguments, got mcf'),
    ],
)
def test_unknown_commands(arguments, problem, tmp_path):
    command = [sys.executable, '-m', 'mcf_mm', *arguments]
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert f'mcf-mm: error: {problem}; there are compare, complexity, configs' in done.stderr


def test_a_shipped_config_from_another_folder(installed, tmp_path):
    """One that reads a file beside it."""
    config = 'configs/multi_dim/multi-dim-published_deit-small_8xb128_in1k.py'
    done = run(installed.mcf_mm, 'complexity', config, '--json', cwd=tmp_path)
    place = installed.site / 'mcf_mm' / '.mim' / config
    assert f'no file {config} here, taking {place}' in done.stderr
    counts = json.loads(done.stdout[done.stdout.index('{') :])
    assert counts['pruned']['macs'] < counts['macs']
    assert not list(tmp_path.iterdir())


def test_commands(installed, tmp_path):
    """One after the other in one process, for OpenMMLab takes long to import."""
    network = tmp_path / 'network.pth'
    torch.save(build_model(load_config(str(ROOT / MICRO))).state_dict(), network)
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in range(10):
            path = tmp_path / 'data/digits/classification' / split / str(label) / '0.png'
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    options = ['--ratios', 'hidden=0.5', '--criterion', 'magnitude', '--num-images', '4']
    commands = [
        ['prune', MICRO, str(network), *options, '--out', 'slim'],
        ['test', 'slim/slim.py', 'slim/slim.safetensors'],
        ['complexity', 'configs/demo/yolos_deit-micro_digits.py'],  # on the bases of mmdet
        ['new-detector', '--help'],
    ]
    code = f"""
import sys
from mcf_mm.__main__ import main
for command in {commands}:
    sys.argv = ['mcf-mm', *command]
    main()
"""
    out = run(installed.python, '-c', code, cwd=tmp_path).stdout
    sizes = read_header(tmp_path / 'slim' / 'slim.safetensors')['sizes']
    assert {unit['hidden'] for unit in sizes.values() if 'hidden' in unit} == {128}
    assert '{"accuracy/top1": ' in out
    assert 'configs/demo/yolos_deit-micro_digits.py at 40 x 40 pixels' in out
    assert 'usage: mcf-mm new-detector [-h]' in out


def test_an_editable_install_takes_those_of_the_checkout(environment, tree, tmp_path):
    """And leaves there nothing that git does not ignore. Last, for it replaces the wheel."""
    before = {path.relative_to(tree) for path in tree.rglob('*')}
    environment.take_packages_from(SITE)
    environment.install('-e', tree, cwd=tmp_path)
    assert run(environment.mcf_mm, 'configs', cwd=tmp_path).stdout == f'{tree / "configs"}\n'
    assert '  prune ' in run(environment.mcf_mm, '--help', cwd=tmp_path).stdout
    left = {path.relative_to(tree).parts[0] for path in tree.rglob('*')} - {
        path.parts[0] for path in before
    }
    assert left <= {'mcf_mm.egg-info', 'build'}
    advice = "import mcf_mm.compat.versions as v; print(v.install_command('search', 'onnx'))"
    done = run(environment.python, '-c', advice, cwd=tmp_path)
    assert done.stdout == f"pip install -e '.[search,onnx]' in {tree}\n"

"""Runs the main job on handwritten digits, on a CPU.

Writes the data sets, trains a micro DeiT (mmpretrain), prunes it with MCF, trains YOLOS (mmdet) on
the dense and on the pruned backbone, evaluates all four on a test split, prints one table and
draws two pictures. What is complete is skipped, what was interrupted goes on where it was.

    python tools/demo.py
"""

import os

# Before torch is imported, and for the training processes too. Networks this small gain next to
# nothing from a second thread, and on a busy machine threads that wait for each other by spinning
# made everything ten times slower.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from mmengine.config import Config  # noqa: E402
from rich.console import Console  # noqa: E402

from mcf_mm.analysis import demo  # noqa: E402
from mcf_mm.datasets.digits import MANIFEST, DigitsSettings, write_digits  # noqa: E402
from mcf_mm.engine.config import load_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/digits')
OUT = Path('work_dirs/demo')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check', action='store_true', help='exit with status 1 when a limit is missed'
    )
    return parser.parse_args()


def train(step: demo.Step, wanted: str) -> None:
    """Runs tools/train.py for a step, in a process of its own as a user would."""
    resume = ['--resume'] if demo.begin(step, wanted) else []
    config = f'configs/demo/{step.name}.py'
    # The networks are so small that a second thread only waits.
    env = {'OMP_NUM_THREADS': '1', **os.environ}
    subprocess.run([sys.executable, 'tools/train.py', config, *resume], check=True, env=env)
    demo.finish(step, wanted)


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)  # The configs name data and work directories from here.
    console = Console()
    start = time.monotonic()

    def say(text: str) -> None:
        console.rule(f'{text} ({time.monotonic() - start:.0f} s)', align='left')

    say('write the digits')
    write_digits(DATA, DigitsSettings())
    data = (DATA / MANIFEST).read_text()
    configs: dict[str, Config] = {
        step.name: load_config(f'configs/demo/{step.name}.py') for step in demo.STEPS
    }
    wanted = {step.name: demo.fingerprint(configs, step.name, data) for step in demo.STEPS}
    for number, step in enumerate(demo.STEPS, 1):
        done = demo.is_done(step, wanted[step.name])
        state = ', complete already' if done else ''
        say(f'{number}/{len(demo.STEPS)} {step.title}{state}')
        if not done:
            try:
                train(step, wanted[step.name])
            except (subprocess.CalledProcessError, FileExistsError, FileNotFoundError) as error:
                sys.exit(f'demo: "{step.title}" failed: {error}')
    say('evaluate on the test split')
    everything = ' '.join(wanted.values())
    results = demo.read_results(OUT / 'results.json', everything)
    if results is None:
        results = demo.report(configs, OUT, everything)
    say('done')
    console.print(demo.results_table(results))
    console.print(f'pictures: {OUT / "kept_sizes.png"}, {OUT / "detections.png"}')
    if problems := results.missed():
        console.print('limits missed: ' + '; '.join(problems))
        sys.exit(1 if args.check else 0)


if __name__ == '__main__':
    main()

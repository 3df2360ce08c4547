"""Runs the main job on handwritten digits, on a CPU.

Writes the data sets, trains a micro DeiT (mmpretrain), prunes it in one shot and by MCF, trains
YOLOS (mmdet) on the dense and on the pruned backbone. Each step ends with its figures on a test
split; then come one table and two pictures. What is complete is skipped, what was interrupted goes
on where it was. Steps that do not wait for each other run side by side, one processor core each.

    python tools/demo/main.py
"""

import os

# Before torch is imported, and for the training processes too. Networks this small gain next to
# nothing from a second thread, and on a busy machine threads that wait for each other by spinning
# made everything ten times slower.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from concurrent.futures import Future, ThreadPoolExecutor, as_completed  # noqa: E402
from pathlib import Path  # noqa: E402

# Beside this file, where Python looks first.
import outcome  # noqa: E402
import steps as demo  # noqa: E402
from digits import MANIFEST, DigitsSettings, write_digits  # noqa: E402
from mmengine.config import Config  # noqa: E402
from rich.console import Console  # noqa: E402

from mcf_mm.engine.config import load_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
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


class Tools:
    """Runs tools/train.py or tools/prune.py for the steps, each in a process as a user would."""

    def __init__(self, console: Console):
        self.console = console
        self.processes: list[subprocess.Popen] = []

    def run(self, step: demo.Step, wanted: str) -> None:
        """Runs one step and shows how far it is.

        Args:
            step: The step.
            wanted: Its fingerprint.

        Raises:
            RuntimeError: The tool failed; names its log.
        """
        resume = ['--resume'] if demo.begin(step, wanted) else []
        command = [sys.executable, *demo.command(step), *resume]
        OUT.mkdir(parents=True, exist_ok=True)
        path = OUT / f'{step.name}.log'
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        with path.open('a') as log:
            for line in process.stdout:
                log.write(line)
                # The rest is in the log: two runs at a time would be hard to read.
                if progress := re.search(r' - ((Epoch\(|MCF: |pruning: ).*)', line):
                    text = f'{step.name}: {" ".join(progress[1].split())}'
                    self.console.print(text, markup=False, highlight=False, no_wrap=True)
        if process.wait() != 0:
            raise RuntimeError(f'"{step.title}" ended with status {process.returncode}, see {path}')
        demo.finish(step, wanted)

    def stop(self) -> None:
        """Ends what still runs; it can go on later."""
        for process in self.processes:
            process.terminate()


def run_all(
    wanted: Mapping[str, str],
    evaluation: outcome.Evaluation,
    console: Console,
    say: Callable[[str], None],
) -> None:
    """Runs what is not complete, each step as soon as those before it are, and evaluates it.

    Args:
        wanted: Fingerprints by name of the step.
        evaluation: Evaluates the steps.
        console: Where progress goes.
        say: Announces a step, and what came out.

    Raises:
        SystemExit: A step failed.
    """
    tools = Tools(console)
    futures: dict[str, Future] = {}

    def work(number: int, step: demo.Step) -> None:
        for before in step.after:
            futures[before].result()
        done = demo.is_done(step, wanted[step.name])
        state = ', complete already' if done else ''
        say(f'{number}/{len(demo.STEPS)} {step.title}{state}')
        if not done:
            tools.run(step, wanted[step.name])
        task, column = step.network
        say(f'{task}, {column}: {evaluation.of(step).line}')

    # One thread for each step, most of which only wait; at most two have all they need.
    with ThreadPoolExecutor(len(demo.STEPS)) as pool:
        for number, step in enumerate(demo.STEPS, 1):
            futures[step.name] = pool.submit(work, number, step)
        try:
            for future in as_completed(futures.values()):
                future.result()
        except (RuntimeError, OSError) as error:
            tools.stop()
            sys.exit(f'demo: {error}')
        except KeyboardInterrupt:
            tools.stop()
            raise


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)  # The configs name data and work directories from here.
    console = Console(file=sys.stdout)  # this one, also while tests print elsewhere
    start = time.monotonic()

    def say(text: str) -> None:
        console.rule(f'{text} ({time.monotonic() - start:.0f} s)', align='left')

    say('write the digits')
    write_digits(DATA, DigitsSettings())
    data = (DATA / MANIFEST).read_text()
    configs: dict[str, Config] = {step.name: load_config(step.config_file) for step in demo.STEPS}
    wanted = {step.name: demo.fingerprint(configs, step.name, data) for step in demo.STEPS}
    everything = ' '.join(wanted.values())
    results = outcome.read_results(OUT / 'results.json', everything)
    if results is None or not all(demo.is_done(step, wanted[step.name]) for step in demo.STEPS):
        evaluation = outcome.Evaluation(configs, OUT)
        run_all(wanted, evaluation, console, say)
        say('time the networks')
        results = evaluation.report(everything)
    say('done')
    console.print(outcome.results_table(results))
    console.print(f'pictures: {OUT / "kept_sizes.png"}, {OUT / "detections.png"}')
    if problems := results.missed():
        console.print('limits missed: ' + '; '.join(problems))
        sys.exit(1 if args.check else 0)


if __name__ == '__main__':
    main()

"""Training logs as MMEngine's backend writes them, of runs that were killed and went on."""

from pathlib import Path

from mmengine.visualization import LocalVisBackend

from mcf_mm.analysis.training_log import read_training_log


def start(work_dir: Path, name: str, epochs: range, surgery: int | None = None) -> Path:
    """The log of one start of a run, two iterations in an epoch."""
    backend = LocalVisBackend(save_dir=str(work_dir / name / 'vis_data'))
    for epoch in epochs:
        if epoch - 1 == surgery:
            backend.add_scalars({'mcf/params_after': 3.0}, step=surgery)
        for step in (2 * epoch - 1, 2 * epoch):
            backend.add_scalars(dict(loss=1 / step, lr=0.1, epoch=epoch, iter=step), step=step)
        backend.add_scalars({'accuracy/top1': 10.0 * epoch, 'time': 0.1}, step=epoch)
    return work_dir / name / 'vis_data' / 'scalars.json'


def test_one_run(tmp_path):
    start(tmp_path, '1', range(1, 5), surgery=2)
    log = read_training_log(tmp_path)
    assert log.loss == [(step, 1 / step) for step in range(1, 9)]
    assert log.metrics == {'accuracy/top1': [(epoch, 10.0 * epoch) for epoch in range(1, 5)]}
    assert log.surgery == 2 and log.measured == {'accuracy/top1': 40.0}


def test_what_was_not_measured_after_surgery_is_not_told(tmp_path):
    assert read_training_log(tmp_path) is None
    start(tmp_path, '1', range(1, 3))
    assert read_training_log(tmp_path).measured == {}


def test_resumed_restarted_and_broken(tmp_path):
    first = start(tmp_path, '1', range(1, 4))
    first.write_text(first.read_text() + '{"loss": 0.1, "st')  # killed while it wrote
    start(tmp_path, '2', range(3, 6), surgery=3)
    log = read_training_log(tmp_path)
    assert [step for step, _ in log.loss] == list(range(1, 11)) and log.broken == 1
    assert [epoch for epoch, _ in log.metrics['accuracy/top1']] == [1, 2, 3, 4, 5]
    assert log.surgery == 3
    # An evaluation has no line of training; a start from the beginning is another run.
    evaluation = LocalVisBackend(save_dir=str(tmp_path / '3' / 'vis_data'))
    evaluation.add_scalars({'accuracy/top1': 1.0}, step=0)
    assert read_training_log(tmp_path).metrics == log.metrics
    start(tmp_path, '4', range(1, 3))
    log = read_training_log(tmp_path)
    assert len(log.loss) == 4 and log.surgery is None

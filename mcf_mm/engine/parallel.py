"""Training in several processes: what in-run pruning can do, and MMEngine without GPUs."""

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODEL_WRAPPERS, DefaultScope
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def require_supported_parallelism(cfg: Config) -> None:
    """Refuses what in-run pruning cannot cut: a model whose parameters are sharded.

    Args:
        cfg: Config of a training run.

    Raises:
        ValueError: The config is one for MMEngine's strategies (DeepSpeed, FSDP, ColossalAI), or
            wraps the model in something else than DistributedDataParallel.
    """
    advice = (
        'MCFPruningHook trains in one process or with MMDistributedDataParallel, which have whole '
        'parameters to cut; or prune in one shot with tools/prune.py and train the slim network'
    )
    for key, default in (('runner_type', 'Runner'), ('strategy', None)):
        if cfg.get(key, default) != default:
            raise ValueError(f'{key} is {cfg[key]}: {advice}')
    kind = (cfg.get('model_wrapper_cfg') or {}).get('type')
    if kind is not None and cfg.get('launcher', 'none') != 'none':
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            wrapper = MODEL_WRAPPERS.get(kind) if isinstance(kind, str) else kind
        if wrapper is None or not issubclass(wrapper, DistributedDataParallel):
            raise ValueError(f'model_wrapper_cfg.type is {kind}: {advice}')


def start_cpu_processes(cfg: Config) -> None:
    """Joins the processes of ``torchrun`` on a machine without accelerator.

    MMEngine's own start asks for CUDA, whatever the backend. Does nothing elsewhere.

    Args:
        cfg: Config of a training run, changed in place.
    """
    if cfg.get('launcher') != 'pytorch' or get_device() != 'cpu':
        return
    distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}

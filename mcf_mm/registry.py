"""Child registries of MMEngine's, so that ``type='mcf_mm.X'`` works in any config.

MMEngine imports ``mcf_mm.registry`` when it meets the scope ``mcf_mm`` and then
the ``locations`` below: nothing has to be imported by hand, no ``custom_imports``.
"""

from typing import Any

from mcf_mm.compat.versions import require_openmmlab

require_openmmlab()

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS  # noqa: E402
from mmengine.registry import DATASETS as MMENGINE_DATASETS  # noqa: E402
from mmengine.registry import HOOKS as MMENGINE_HOOKS  # noqa: E402
from mmengine.registry import METRICS as MMENGINE_METRICS  # noqa: E402
from mmengine.registry import MODELS as MMENGINE_MODELS  # noqa: E402
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS  # noqa: E402
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS  # noqa: E402
from mmengine.registry import Registry  # noqa: E402

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mcf_mm', locations=['mcf_mm.engine'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mcf_mm', locations=['mcf_mm.models'])
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope='mcf_mm', locations=['mcf_mm.datasets']
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mcf_mm', locations=['mcf_mm.datasets']
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mcf_mm', locations=['mcf_mm.datasets'])
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mcf_mm',
    locations=['mcf_mm.engine'],
)
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='mcf_mm', locations=['mcf_mm.datasets']
)
OWN = (HOOKS, MODELS, DATASETS, TRANSFORMS, METRICS, OPTIM_WRAPPERS, DATA_SAMPLERS)

# Checkpoints of configs that import this module may be `.safetensors` files.
from mcf_mm.weights import checkpoint  # noqa: E402, F401


def split_type(kind: Any) -> tuple[str, str]:
    """Scope and name of a ``type`` in a config, which is a text or, in new-style configs, a class.

    Returns:
        The library, such as ``'mmdet'`` (``''`` where the text has none), and the class name.
    """
    if isinstance(kind, str):
        scope, _, name = kind.rpartition('.')
        return scope, name
    return kind.__module__.partition('.')[0], kind.__name__


def is_pretrained(init_cfg: dict | None) -> bool:
    """Whether an ``init_cfg`` loads a checkpoint; its ``type`` is a text or MMEngine's class."""
    return bool(init_cfg) and split_type(init_cfg.get('type', ''))[1] in (
        'Pretrained',
        'PretrainedInit',
    )


def own_scope(part: Any) -> None:
    """Write ``mcf_mm.`` before each ``type`` in a config that only mcf_mm has, in place.

    MMEngine looks for ``type='MCFPruningHook'`` in the default scope and in its own, not in ours. A
    name that somebody else has registered too is left alone.

    Args:
        part: A config or a part of one; anything that is neither dict nor list is left alone.
    """
    for value in part.values() if hasattr(part, 'values') else part:
        if isinstance(value, list | tuple | dict):
            own_scope(value)
    if hasattr(part, 'get') and isinstance(kind := part.get('type'), str) and _is_ours(kind):
        part['type'] = f'mcf_mm.{kind}'


def _is_ours(name: str) -> bool:
    for registry in OWN:
        registry.import_from_location()
        others = [registry.parent, *registry.parent.children.values()]
        if name in registry.module_dict and '.' not in name:
            return not any(name in other.module_dict for other in others if other is not registry)
    return False

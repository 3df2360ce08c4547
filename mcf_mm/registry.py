"""Child registries of MMEngine's, so that ``type='mcf_mm.X'`` works in any config.

MMEngine imports ``mcf_mm.registry`` when it meets the scope ``mcf_mm`` and then
the ``locations`` below: nothing has to be imported by hand, no ``custom_imports``.
"""

from mcf_mm.compat.versions import require_openmmlab

require_openmmlab()

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS  # noqa: E402
from mmengine.registry import DATASETS as MMENGINE_DATASETS  # noqa: E402
from mmengine.registry import HOOKS as MMENGINE_HOOKS  # noqa: E402
from mmengine.registry import MODELS as MMENGINE_MODELS  # noqa: E402
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
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='mcf_mm', locations=['mcf_mm.datasets']
)

# Checkpoints of configs that import this module may be `.safetensors` files.
from mcf_mm.weights import checkpoint  # noqa: E402, F401

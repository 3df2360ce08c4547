"""Pruning of vision transformers inside OpenMMLab.

``mcf_mm.pruning`` is the method and needs torch alone; everything else is MMEngine hooks and
registered models for mmpretrain and mmdet.
"""

from mcf_mm.compat.versions import (
    install_operator_stand_in,
    tolerate_new_transformers,
    warn_about_openmmlab,
)

__version__ = '0.1.0'

install_operator_stand_in()
tolerate_new_transformers()
warn_about_openmmlab()

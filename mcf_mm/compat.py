"""The one place that knows about versions."""


def install_operator_stand_in():
    pass


def warn_about_openmmlab():
    pass


def require_openmmlab():
    pass

"""What of MMEngine's log is shown in the terminal; the log file has all of it."""

import logging

#: How the records begin that take hundreds of lines before the first loss.
LONG = (
    '\n' + '-' * 60 + '\nSystem environment:',
    'Config:\n',
    'Hooks will be executed in the following order:',
    'paramwise_options -- ',
)


class ShortTerminal(logging.Filter):
    """Keeps what MMEngine says of environment, config, hooks and parameters out of a handler.

    Warnings and errors pass, and so does everything else.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the handler shows the record."""
        return record.levelno > logging.INFO or not str(record.msg).startswith(LONG)


def shorten(logger: logging.Logger) -> None:
    """Keep the long records of a logger for its files, and say once where they are.

    Args:
        logger: MMEngine's. One without a file is left as it is.
    """
    files = [part for part in logger.handlers if isinstance(part, logging.FileHandler)]
    shown = [part for part in logger.handlers if part not in files]
    if not files or any(isinstance(f, ShortTerminal) for part in shown for f in part.filters):
        return
    for handler in shown:
        handler.addFilter(ShortTerminal())
    logger.info(f'environment, config and options of parameters: {files[0].baseFilename}')

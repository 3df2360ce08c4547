"""Where the trials of a search are kept, and patience with a database that goes away."""

import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from mcf_mm.compat.versions import install_command

Result = TypeVar('Result')

#: Seconds between signs of life of a worker, and after how many it counts as dead on other hosts.
BEAT, GRACE = 30, 120


class StorageLost(RuntimeError):
    """The storage has not answered for as long as was waited."""


def import_optuna() -> Any:
    """Optuna 5, silent but for errors.

    Raises:
        ImportError: It or what it needs is missing; the message says how to install it.
    """
    advice = install_command('search')
    for name in ('optuna', 'scipy', 'matplotlib'):
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(f'a search needs {name} ({error}): {advice}') from None
    optuna = import_module('optuna')
    if int(optuna.__version__.partition('.')[0]) != 5:
        raise ImportError(f'a search needs Optuna 5, {optuna.__version__} is installed: {advice}')
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for category in (optuna.exceptions.ExperimentalWarning, FutureWarning):
        warnings.filterwarnings('ignore', category=category, module='optuna')
        warnings.filterwarnings('ignore', category=category, module='mcf_mm.search')
    return optuna


def default_storage(out_dir: str | Path) -> str:
    """URL of the database in an output folder.

    SQLite: its locks are the system's, which end with the process that holds them, and what a
    killed process has half written is rolled back. A journal file of Optuna's keeps the lock of a
    killed process for 30 seconds, and half a line for ever.
    """
    return f'sqlite:///{Path(out_dir).resolve() / "study.db"}'


def open_storage(url: str) -> Any:
    """Open the storage of a study.

    Args:
        url: Of a database, such as ``'postgresql://user:password@host/name'`` or
            ``'sqlite:///file.db'``; or a path that ends with ``.log``, a journal file, for folders
            on a network file system.

    Raises:
        ImportError: The driver of the database is missing.
        ValueError: ``url`` is neither.
    """
    optuna = import_optuna()
    if '://' not in url:
        if not url.endswith('.log'):
            raise ValueError(
                'storage must be the URL of a database, such as postgresql://user@host/name, or a '
                f'journal file that ends with .log, got {url!r}'
            )
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(url))
    errors = import_module('sqlalchemy.exc')
    local = url.startswith('sqlite')
    # On SQLite several workers wait for each other; others may close connections at any time.
    engine: dict[str, Any] = {'connect_args': {'timeout': 60}} if local else {'pool_pre_ping': True}
    if url.startswith('postgres'):
        engine['connect_args'] = {'connect_timeout': 10}
    beats = {} if local else {'heartbeat_interval': BEAT, 'grace_period': GRACE}
    # The driver of the extra `postgres`: SQLAlchemy 2.1 takes another one unless it is named.
    full = re.sub(r'^postgres(ql)?://', 'postgresql+psycopg2://', url)

    def made() -> Any:
        return optuna.storages.RDBStorage(full, engine_kwargs=engine, **beats)

    try:
        try:
            return made()
        except (errors.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            # Another worker makes the tables of an empty database at the same time.
            if not re.search('already exists|duplicate key|UNIQUE constraint', str(error)):
                raise
            time.sleep(2)
            return made()
    except (errors.ArgumentError, errors.NoSuchModuleError) as error:
        raise ValueError(f'storage {hidden(url)!r} is no URL of a database: {error}') from None
    except ImportError as error:
        cause = error.__cause__ or error
        raise ImportError(
            f'storage {hidden(url)!r} needs the driver of its database ({cause}): for PostgreSQL '
            f'{install_command("postgres")}'
        ) from None


def hidden(url: str) -> str:
    """A URL for messages, without its password."""
    head, found, rest = url.partition('://')
    user, at, place = rest.rpartition('@')
    return f'{head}{found}{user.partition(":")[0]}:***@{place}' if at and ':' in user else url


class Patience:
    """Repeats calls of a storage that fail until it answers again.

    Args:
        url: For messages.
        seconds: How long. Defaults to 60.
        say: Prints a line. Defaults to ``print``.
    """

    def __init__(self, url: str, seconds: float = 60, say: Callable[[str], None] = print):
        self.url, self.seconds, self.say = hidden(url), seconds, say
        self.lost = (
            import_optuna().exceptions.StorageInternalError,
            import_module('sqlalchemy.exc').SQLAlchemyError,
            OSError,
        )

    def __call__(self, call: Callable[[], Result]) -> Result:
        """The result of ``call``, which may be made several times.

        Raises:
            StorageLost: It has failed for as long as that.
        """
        end, pause = None, 0.1
        while True:
            try:
                result = call()
            except self.lost as error:
                now = time.monotonic()
                reason = str(error.__cause__ or error).strip().partition('\n')[0]
                if end is None:
                    end = now + self.seconds
                    self.say(f'{self.url} does not answer, trying for {self.seconds:g} s: {reason}')
                if now >= end:
                    raise StorageLost(
                        f'{self.url} has not answered for {self.seconds:g} s: {reason}'
                    ) from error
                time.sleep(min(pause, max(0.0, end - now)))
                pause = min(2 * pause, 5)
            else:
                if end is not None:
                    self.say(f'{self.url} answers again')
                return result


@contextmanager
def beating(storage: Any, trial_id: int) -> Iterator[None]:
    """Tell a database every 30 seconds that the worker of a trial is alive, where it wants that."""
    if getattr(storage, 'heartbeat_interval', None) is None:
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while True:
            try:
                storage.record_heartbeat(trial_id)
            except Exception:  # noqa: BLE001  the trial itself will find out, and wait
                pass
            if done.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()

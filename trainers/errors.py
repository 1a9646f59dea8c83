"""What can end a run, and the exit code that says so to the machine that started it."""


class RunError(Exception):
    """A failure with words for the person and an exit code for the scheduler."""

    exit_code = 1
    everywhere = False  # raised on every rank alike: one on each machine tells it
    step: int | None = None  # during which it happened


class ConfigError(RunError):
    """The configuration cannot be run: a wrong key, type or value."""

    exit_code = 2
    everywhere = True


class DataError(RunError):
    """The data is missing, unreadable, malformed or too small."""

    exit_code = 3
    everywhere = True


class DataInterruptedError(DataError):
    """The data could not be prepared to its end this time; what is done is kept for the next."""


class CheckpointError(RunError):
    """A checkpoint is damaged, or belongs to another run."""

    exit_code = 4


class NonFiniteError(RunError):
    """Loss or gradients stopped being numbers."""

    exit_code = 5


class StorageError(RunError):
    """The run folder cannot be written."""

    exit_code = 6


class PeerLostError(RunError):
    """Another rank died, or did not answer in time."""

    exit_code = 7


class MemoryLimitError(RunError):
    """The model and batch do not fit into memory."""

    exit_code = 8


class FolderInUseError(RunError):
    """Another run is writing to this folder."""

    exit_code = 9


class ParityError(RunError):
    """Sharded training is not what unsharded training is."""

    exit_code = 10


class StoppedError(RunError):
    """A signal asked the run to stop, and it did: the same command goes on."""

    exit_code = 75
    everywhere = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # 75, please requeue, or 130 for Ctrl-C

"""Datasets of the Hugging Face hub, or a local dataset folder, read as a stream. No code of a dataset is ever run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_core.config.data import HubSourceConfig
from dpr_core.data.rows import BadRow, Demonstration, RowReader, Unusable
from dpr_core.errors import DensePathError, UsageError

_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 2**20


class HubDataset:
    """One split of a dataset."""

    expected_rows: int | None = None

    def __init__(self, config: HubSourceConfig) -> None:
        self.name = config.name
        self._config = config

    def rows(self) -> Iterator[tuple[str, Demonstration | BadRow]]:
        reader = RowReader(self._config.columns, self.name)
        for number, row in enumerate(self._raw_rows(), 1):
            where = f"{self.name}:{self._config.split}:{number}"
            try:
                yield where, reader.read(row, fallback_id=f"row-{number}")
            except Unusable as problem:
                yield where, BadRow.of(where, str(problem), json.dumps(row, ensure_ascii=False, default=str))
        reader.finish()

    def _raw_rows(self) -> Iterator[Any]:
        count = 0
        try:
            stream = self._open()
            split_info = (stream.info.splits or {}).get(self._config.split)
            self.expected_rows = (split_info.num_examples or None) if split_info else None
            for row in stream:
                count += 1
                yield row
        except DensePathError:
            raise
        except Exception as error:
            raise self._explained(error, count) from error

    def _open(self) -> Any:
        import datasets

        local = Path(self.name).expanduser()
        if local.is_file():
            raise UsageError(
                f"{self.name} is a file. For a JSONL, Parquet or CSV file: "
                f"--set subsample.source.type=file --set subsample.source.path={self.name}"
            )
        if self.name.startswith(("/", ".", "~")) and not local.is_dir():
            raise UsageError(
                f"there is no dataset folder {self.name}; name another: --set subsample.source.name=FOLDER"
            )
        builder = datasets.load_dataset_builder(
            str(local) if local.is_dir() else self.name, self._config.subset, revision=self._config.revision
        )
        _read_little_at_once(builder.config)
        return builder.as_streaming_dataset(split=self._config.split)

    def _explained(self, error: Exception, count: int) -> DensePathError:
        from datasets.exceptions import DatasetNotFoundError

        detail = " ".join(str(error).split()).rstrip(".")
        if count:
            return DensePathError(f"reading the dataset {self.name} stopped after row {count}: {detail}")
        if isinstance(error, DatasetNotFoundError):
            return UsageError(
                f"there is no dataset {self.name} on the hub that can be read from here ({detail}). "
                "Check subsample.source.name and .revision; log in with `hf auth login` if it is private or gated"
            )
        if isinstance(error, ConnectionError):
            return DensePathError(
                f"the hub cannot be reached for the dataset {self.name} ({detail}). Check the network and "
                "HF_HUB_OFFLINE, or name a local folder that holds it: --set subsample.source.name=FOLDER"
            )
        if isinstance(error, ValueError | FileNotFoundError):
            return UsageError(
                f"the dataset {self.name} cannot be opened: {detail}. Check subsample.source.name, .revision and .split"
            )
        return DensePathError(f"the dataset {self.name} cannot be read: {type(error).__name__}: {detail}")


def _read_little_at_once(settings: Any) -> None:
    """Else pyarrow reads Parquet ahead and keeps what it has read: the memory grows with the file."""
    from datasets.packaged_modules.parquet.parquet import ParquetConfig
    from pyarrow.dataset import ParquetFragmentScanOptions

    if isinstance(settings, ParquetConfig):
        settings.batch_size = _ROWS_AT_ONCE
        settings.fragment_scan_options = ParquetFragmentScanOptions(
            use_buffered_stream=True, buffer_size=_BYTES_AT_ONCE, pre_buffer=False
        )

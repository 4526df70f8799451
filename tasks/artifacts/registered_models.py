"""Registered models of MLflow: versions whose weights are an artifact's, and the aliases that point at them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpr_core.errors import DensePathError
from tasks.artifacts.listed import SECONDS_TO_LIST

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

logger = logging.getLogger("dense_path")

PAGE = 1000


@dataclass(frozen=True)
class Version:
    """Some weights of an artifact under a registered name."""

    name: str
    number: int
    artifact: str
    source: str
    aliases: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return " ".join([f"{self.name} version {self.number}", *(f"@{alias}" for alias in self.aliases)])


class RegisteredModels:
    """The registry that goes with a store of runs."""

    def __init__(self, client: "MlflowClient") -> None:
        self._client = client

    def of(self, run_id: str) -> list[Version]:
        """The versions that are of an artifact, with their aliases; none where MLflow does not say."""
        try:
            with self._client.retry.at_most(SECONDS_TO_LIST):
                return self._with_aliases(self._search(f"run_id = '{run_id}'"))
        except DensePathError as error:
            logger.warning("registered models are not shown: %s", error)
            return []

    def all(self) -> list[Version]:
        return self._with_aliases(self._search())

    def at(self, name: str, alias: str) -> Version | None:
        """The version that an alias points at; `name` has no quotes."""
        return next(
            (each for each in self._with_aliases(self._search(f"name = '{name}'")) if alias in each.aliases), None
        )

    def promote(self, run_id: str, source: str, name: str, alias: str, tags: Mapping[str, str], note: str) -> Version:
        """Have an alias point at these weights, in the version that has them already or in a new one."""

        def promoted(client: Any) -> Version:
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            there = (each for each in self._search(f"name = '{name}'") if each.source == source)
            if (version := next(there, None)) is None:
                made = client.create_model_version(name, source, run_id, tags=dict(tags), description=note)
                version = Version(name, int(made.version), run_id, source)
            client.set_registered_model_alias(name, alias, str(version.number))
            return version

        return self._client.together(promoted)

    def _search(self, condition: str | None = None) -> Iterator[Version]:
        token = None
        while True:
            page = self._client.search_model_versions(condition, max_results=PAGE, page_token=token)
            yield from (Version(each.name, int(each.version), each.run_id or "", each.source or "") for each in page)
            token = page.token
            if not token:
                return

    def _with_aliases(self, versions: Iterator[Version]) -> list[Version]:
        """A search of versions does not say them."""
        found = list(versions)
        aliases = {
            name: self._client.get_registered_model(name).aliases for name in {version.name for version in found}
        }
        return [
            Version(
                each.name,
                each.number,
                each.artifact,
                each.source,
                tuple(sorted(alias for alias, number in aliases[each.name].items() if int(number) == each.number)),
            )
            for each in found
        ]

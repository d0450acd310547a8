"""What /openapi.json promises is kept: requests made from it, right and wrong, get the answers that it describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import live

from pickglass.data.tables.sources import DataSource
from pickglass.web.settings import ServeSettings


@pytest.fixture(scope="module")
def described(exported_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("state")
    chosen = ServeSettings((exported_model,), DataSource(small_dataset), folder=folder, port=0, max_bytes=2**20)
    with live(chosen) as address:
        yield schemathesis.openapi.from_url(address + "/openapi.json")


@schemathesis.serializer("text/csv")  # the first versions know none
def sent(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "backslashreplace")


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_as_described(
    described: Any, tmp_path_factory: pytest.TempPathFactory, mode: GenerationMode
) -> None:
    inside = str(tmp_path_factory.getbasetemp()).encode()  # of models, images and the state
    wrong: dict[str, str] = {}
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            # that bytes are an image, and a number one of those that are kept, is more than a schema can say;
            # 503 is what is answered while many wait, or while something is not ready yet
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance, not_a_server_error])
            assert answer.status_code < 500 or answer.status_code == 503
            assert inside not in answer.content, "an answer names a folder of the server"

        try:
            ask()
        except Unsatisfiable:  # it has no argument that could be wrong
            continue
        except (FailureGroup, AssertionError) as error:
            wrong[operation.label] = str(error)
    assert tried > 20
    assert not wrong, "\n\n".join(f"{label}: {error}" for label, error in wrong.items())

"""What methods have learned runs in the engine while images are judged, and answers as torch does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor, nn

import pickglass as pg
from pickglass.features.engine import BackboneEngine, PerPositionEngine
from pickglass.methods import Detector
from pickglass.testing import textures

SIZE = 64
METHODS: dict[str, Callable[[], Detector]] = {
    "stfpm": lambda: pg.STFPM(size=SIZE, epochs=1),
    "reverse_distillation": lambda: pg.ReverseDistillation(size=SIZE, epochs=1),
    "fastflow": lambda: pg.FastFlow(size=SIZE, epochs=1, steps=2),
    "asymmetric_student_teacher": lambda: pg.AsymmetricStudentTeacher(
        size=SIZE, teacher_epochs=1, student_epochs=1, student_hidden=8
    ),
}


# a student and a flow, and what is made of the same
SOON = ("stfpm", "fastflow")


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in METHODS]
)
def test_students_and_flows_judge_in_the_engine_as_in_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = METHODS[name]().fit(textures(10, SIZE), calibrate=0, engine="torch")
    images = textures(3, SIZE, seed=1)
    wanted = detector.predict(images, engine="torch")
    compiled: list[str] = []
    real = PerPositionEngine.__call__

    def told(
        self: PerPositionEngine, engine: BackboneEngine, network: nn.Module, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        answer = real(self, engine, network, *inputs)
        compiled.extend(runner.name for runner in self._runners)
        return answer

    monkeypatch.setattr(PerPositionEngine, "__call__", told)
    found = detector.predict(images, engine="openvino")
    assert compiled
    assert set(compiled) == {"openvino"}
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-3)
    for ours, theirs in zip(found.maps, wanted.maps, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * float(theirs.max()))

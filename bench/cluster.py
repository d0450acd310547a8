"""What a second machine saves: the same study and predictions on a Ray cluster of one node and of two.

    python -m bench.cluster DATA IMAGES      needs pickglass[cluster]

DATA is a data set to study, IMAGES a folder of images to judge. The nodes are processes of this machine with a core
each, so two of them show no more than two cores can, and Ray's own processes share these. Both clusters are warm: each
ran the same work once before. Prints the seconds of both and their ratio, and whether any score differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pickglass.app.fit import FitRequest, fit
from pickglass.app.jobs.executors import Where
from pickglass.app.predict import predict
from pickglass.app.study.store import StudyStore
from pickglass.app.study.study import StudyRequest, study
from pickglass.metrics.catalogue import WITHOUT_THRESHOLD
from pickglass.runtime.compute import ComputeOptions

RUN = ComputeOptions(engine="torch", workers=1)


@contextmanager
def nodes(n: int) -> Iterator[None]:
    """A cluster of n nodes with one core each, and this process connected to it."""
    ray: Any = import_module("ray")
    node = {"num_cpus": 1, "memory": 2_000_000_000, "object_store_memory": 200_000_000}
    cluster = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False}
    )
    for _ in range(n - 1):
        cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def timed(data: Path, images: Path, model: Path, folder: Path) -> tuple[dict[str, float], list[Any]]:
    """Seconds of each kind of work, and what came out."""
    where = Where("ray", memory_gb=1.0)
    request = StudyRequest(methods=["padim", "patchcore"], layers=["stage3"], sizes=[128, 160, 192, 224])
    began = time.perf_counter()
    study([data], folder / "s.sqlite", request, where=where, compute=RUN)
    studied = time.perf_counter()
    found = predict(model, [images], where=where, compute=RUN)
    ended = time.perf_counter()
    with StudyStore(folder / "s.sqlite", create=False) as store:
        values: list[Any] = [[row[name] for name in WITHOUT_THRESHOLD] for row in store.rows()]
    values += [[item["path"], item["score"]] for item in found["results"]]
    return {"study": studied - began, "predict": ended - studied}, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("images", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "m.safetensors"
        fit(given.data, model, FitRequest(settings={"size": 256}), compute=RUN)
        seconds: dict[int, dict[str, float]] = {}
        values: dict[int, list[Any]] = {}
        for n in (1, 2):
            with nodes(n):
                for turn in ("cold", "warm"):
                    own = folder / f"{n}-{turn}"
                    own.mkdir()
                    seconds[n], values[n] = timed(given.data, given.images, model, own)
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "ratio": {work: seconds[1][work] / seconds[2][work] for work in seconds[1]},
                    "n_images": len(values[1]) - 8,
                    "equal": values[1] == values[2],
                }
            )
        )


if __name__ == "__main__":
    main()

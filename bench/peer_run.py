"""Run the peer's script in the peer's environment, keep its memory bank and time its coreset.

It is the other side of bench/patchcore.py, bench/parity.py and bench/runtime.py.

Usage (python of the peer's environment): python bench/peer_run.py SCRIPT BANK.npy [--random-bank] -- arguments of the
script. With --random-bank the bank is drawn at random, as large as it would be: enough to time predictions, minutes
sooner.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    script, bank = sys.argv[1:3]
    at = sys.argv.index("--")
    random_bank = "--random-bank" in sys.argv[3:at]
    sys.argv = [script, *sys.argv[at + 1 :]]
    spec = importlib.util.spec_from_file_location("peer_script", script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    from anomalib.engine import Engine
    from anomalib.models.components import KCenterGreedy

    select = KCenterGreedy.sample_coreset

    def sample_coreset(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        if random_bank:
            rows = np.random.default_rng(0).permutation(len(self.embedding))[: self.coreset_size]
            result = self.embedding[rows.tolist()]
        else:
            result = select(self, *args, **kwargs)
        print(json.dumps({"coreset_s": time.perf_counter() - start}))
        return result

    KCenterGreedy.sample_coreset = sample_coreset
    original = Engine.predict

    def predict(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        np.save(bank, model.model.memory_bank.cpu().numpy())
        return original(self, model, *args, **kwargs)

    Engine.predict = predict
    module.main()


if __name__ == "__main__":
    main()

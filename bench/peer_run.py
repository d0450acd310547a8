"""Run the peer's script in the peer's environment and keep its memory bank too: the other side of bench/peer.py.

Usage (python of the peer's environment): python bench/peer_run.py SCRIPT BANK.npy -- arguments of the script
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np


def main() -> None:
    script, bank = sys.argv[1:3]
    sys.argv = [script, *sys.argv[4:]]
    spec = importlib.util.spec_from_file_location("peer_script", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    from anomalib.engine import Engine

    original = Engine.predict

    def predict(self, model, *args, **kwargs):
        np.save(bank, model.model.memory_bank.cpu().numpy())
        return original(self, model, *args, **kwargs)

    Engine.predict = predict
    module.main()


if __name__ == "__main__":
    main()

"""A camera becomes a folder of images: each frame is stored as a PNG file, and judged as a file that arrives.

So a kill loses no frame that was taken, and a frame is judged as it can be looked at later. Where images wait for the
model, either no frame is taken meanwhile, or the oldest that wait are skipped, as ``when_late`` says.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pickglass.data.files import written_whole
from pickglass.errors import InputError, MissingExtra

__all__ = ["Camera"]

_BLIND = 5  # frames that do not come, until the camera is opened again
_LONGEST_WAIT = 10.0  # seconds between two tries to open it


class Camera(threading.Thread):
    """A camera is read by a thread, which writes each frame to a folder.

    Args:
        source: number of a camera (``"0"``), an address such as ``rtsp://...``, or a video file, which is read once.
        folder: where the frames are stored.
        room: whether a frame may be taken now.
        every: seconds between two frames at least.

    Attributes:
        error: why no frame comes; None: they come.
        ended: when a video file was read to its end, on the monotonic clock; None: more frames may come.

    Raises:
        MissingExtra: OpenCV is not installed.
        InputError: the camera does not open.
    """

    def __init__(self, source: str, folder: Path, room: Callable[[], bool], every: float) -> None:
        super().__init__(name="pickglass-camera", daemon=True)
        try:
            self._cv2: Any = importlib.import_module("cv2")
        except ImportError as error:
            raise MissingExtra(
                "--camera needs OpenCV, which is not installed: pip install opencv-python-headless"
            ) from error
        self._source: int | str = int(source) if source.isdecimal() else source
        self._folder, self._room, self._every = folder, room, every
        self._label = f"camera{source}" if source.isdecimal() else "camera"
        self._is_file = Path(source).is_file()
        self._stopped = threading.Event()
        self.error: str | None = None
        self.ended: float | None = None
        self._capture = self._open()
        if self._capture is None:
            raise InputError(
                f"--camera {source!r} does not open: expected the number of a camera, from 0 on, that no other program "
                "uses, an address such as rtsp://..., or a video file"
            )

    def _open(self) -> Any:
        capture = self._cv2.VideoCapture(self._source)
        if capture.isOpened():
            return capture
        capture.release()
        return None

    def run(self) -> None:
        """Take frames until stopped."""
        blind, wait = 0, 0.5
        while not self._stopped.is_set():
            if not self._room():
                self._stopped.wait(0.01)
                continue
            began = time.monotonic()
            taken, frame = self._capture.read() if self._capture is not None else (False, None)
            if taken:
                blind, wait = 0, 0.5
                self._store(frame)
                self._stopped.wait(max(0.0, self._every - (time.monotonic() - began)))
                continue
            if self._is_file:
                self.ended = time.monotonic()
                break
            blind += 1
            if blind >= _BLIND or self._capture is None:
                self.error = f"camera {self._source!r} gives no frames: it is opened again"
                if self._capture is not None:
                    self._capture.release()
                self._stopped.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                self._capture = self._open()
                blind = 0
        if self._capture is not None:
            self._capture.release()

    def _store(self, frame: Any) -> None:
        """Store a frame, BGR or grey, as PNG; where that fails, it is tried again, for the frame is not to be lost."""
        time_taken = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        pixels = frame[..., ::-1] if frame.ndim == 3 else frame
        target = self._folder / f"{self._label}-{time_taken}Z.png"
        while not self._stopped.is_set():
            try:
                with written_whole(target) as temporary:
                    Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, compress_level=1)
            except (OSError, InputError) as error:
                self.error = f"a frame of the camera cannot be stored: {error}"
                self._stopped.wait(1.0)
                continue
            self.error = None
            return

    def stop(self) -> None:
        """Take no more frames."""
        self._stopped.set()
        self.join(5.0)

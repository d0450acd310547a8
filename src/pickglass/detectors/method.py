"""The hooks that a method writes: what it learns from good images, and how it scores others.

A method knows neither files nor tiles. It reads a :class:`~pickglass.features.batch.Batch` of features
``(B, P, C, h, w)``, one level per chosen layer, or of images, and answers with scores ``(B, P)`` and maps
``(B, P, h, w)``; **every learned tensor leads with the position axis P**. Plain use is P = 1.

Letters: B images, P positions, C channels, h x w cells of the finest layer, H x W pixels of the network's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pickglass.data import Table
from pickglass.detectors.settings import Configured
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.training.loop import Phase
from pickglass.runtime.compute import Progress, Shape

__all__ = ["FitContext", "Form", "Judged", "Method", "Neighbour", "assign"]

Self = TypeVar("Self", bound="Method")


@dataclass(frozen=True)
class FitContext:
    """What a method may need to know while it learns.

    Attributes:
        n_images: how many images ``observe`` will see in all.
        shapes: (C, h, w) of each level.
        positions: P.
        seed: for everything that is drawn at random.
        memory_gb: what may be held at once.
        progress: called with (stage, done, total).
        groups: number of groups of positions that are learned one after the other, none larger than this one; the
            model holds them all.
        n_validate: how many images ``observe_validation`` will see in all, of one position.
        units: for each image that ``observe`` sees in one of its turns, the number of the part or roll that it shows.
        before: in an update, how many images were learned before, counted as ``n_images``; 0: this is a fit.
        per_image: how many images of a batch, one after the other, are tiles of one image: those that share a head.
        n_defects: how many images ``observe_defects`` will see in all, counted as ``n_images``.
        learn_all: names of the components that learn the images for validation, too.
        units_of_all: the units of the images to fit, and then of those for validation.
    """

    n_images: int
    shapes: list[Shape]
    positions: int
    seed: int
    memory_gb: float
    progress: Progress
    groups: int = 1
    n_validate: int = 0
    units: tuple[int, ...] = ()
    before: int = 0
    per_image: int = 1
    n_defects: int = 0
    learn_all: tuple[str, ...] = ()
    units_of_all: tuple[int, ...] = ()


class Neighbour(NamedTuple):
    """A patch of a good image, as a method remembers it.

    Attributes:
        distance: how far it is from the cell that was asked about, in the units of the map.
        image: number of the training image, from 0 on in the order in which they were learned; -1: unknown.
        spot: (turn m + tile) h w + cell, where turn is the place in ``quarter_turns``, tile that among the m tiles
            that share the head, and cell that on the grid of the turned tile; -1: unknown.
    """

    distance: float
    image: int
    spot: int


@dataclass(frozen=True)
class Judged:
    """Good images that were not learned from, or were judged so.

    Attributes:
        rows: N of them.
        units: the number of each one's unit.
        scores: (N,) image scores.
        maps: (N, h, w) joined maps.
        inside: (N, h, w) bool, the cells that count.
    """

    rows: Table
    units: Tensor
    scores: Tensor
    maps: Tensor
    inside: Tensor


class Form(NamedTuple):
    """A learned tensor has this shape and kind.

    Attributes:
        shape: None is a size that follows from the images.
        dtype: the kind of its numbers.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype = torch.float32


class Method(Configured, ABC):
    """A method is a subclass of :class:`pickglass.Detector` that fills in the hooks of this class.

    It sets the class attributes ``method`` (its name) and, where they differ from the defaults, ``reads``,
    ``validate_share`` and ``presets``; its constructor stores its settings under their own names. It must implement
    :meth:`begin_fit` and :meth:`score`, and overrides what else it needs:

    - A **statistical** method sees each image once: :meth:`build`, :meth:`begin_fit`, :meth:`observe` for each batch,
      :meth:`observe_validation` for each batch held back, :meth:`end_fit`.
    - A **trained** method also returns :meth:`phases`, which are trained after ``observe`` and before
      ``observe_validation``, over and over the same batches.

    Shapes: ``batch.levels`` are (B, P, C, h, w) each, ``batch.images`` (B, P, 3, H, W), ``batch.keep`` (B, P, H, W)
    bool; scores are (B, P), maps (B, P, h, w). Whatever is learned is a buffer or parameter that leads with P.

    Attributes:
        trains: whether the class has phases to train; set by itself when the class is made.
        validates: whether it wants to see validation images, likewise.
        leaves_out_known: whether :meth:`score_left_out` needs nothing but the image itself, so that an update can judge
            images of the fit, too, as if they had been left out.
    """

    trains: bool = False
    validates: bool = False
    leaves_out_known: bool = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.trains = cls.phases is not Method.phases
        cls.validates = cls.observe_validation is not Method.observe_validation

    # -- learning ------------------------------------------------------------------------------------------------------

    @property
    def quarter_turns(self) -> tuple[int, ...]:
        """The quarter turns in which a statistical method sees each image; (0,): as it is."""
        return (0,)

    @property
    def brightnesses(self) -> tuple[float, ...]:
        """The factors of brightness in which a statistical method sees each image, in each turn; (1.0,): as it is."""
        return (1.0,)

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Lay out what will be learned, for levels of these shapes (C, h, w); also before a model file fills it."""

    def check_learned(self, shapes: list[Shape]) -> None:
        """Check what shapes do not tell of tensors that came from a file, e.g. that indices are some.

        Raises:
            InputError: they cannot have been learned.
        """

    @abstractmethod
    def begin_fit(self, context: FitContext) -> None:
        """Check the settings against the shapes and allocate, before the first image comes."""

    def observe(self, batch: Batch) -> None:
        """Take in a batch of good images; each comes once in each of the ``quarter_turns`` and ``brightnesses``."""

    def observe_further(self, batch: Batch) -> None:
        """Take in a batch of images for validation, after all others, with the components that learn these, too."""

    @property
    def learns_defects(self) -> bool:
        """Whether the method learns from known defects, too."""
        return type(self).observe_defects is not Method.observe_defects

    def observe_defects(self, batch: Batch, truth: Tensor | None) -> None:
        """Take in a batch of known defects, after the good images; each image comes once.

        Args:
            batch: images of bad parts.
            truth: (B, P, H, W) bool, where their defects are; None: that is not known.
        """

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return what is trained, in this order, over and over the same batches."""
        return ()

    def observe_validation(self, batch: Batch) -> None:
        """Take in a batch of good images that nothing was learned from; each image comes once."""

    def end_fit(self) -> dict[str, Any]:
        """Finish after the last image and return what is worth telling the user, as JSON knows it."""
        return {}

    def begin_update(self, context: FitContext) -> None:
        """Get ready to learn further images on top of what was learned; what follows is as in a fit.

        A statistical method is shown the further images by :meth:`observe`; a trained one is not, for what it gathers
        there is of the fit: its :meth:`phases` train on, for a quarter of their time.

        Raises:
            InputError: the method cannot do that, as long as it does not override this.
        """
        raise InputError(
            f"{type(self).__name__} cannot be updated: fit a new model on the old and the new images together"
        )

    # -- judging -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return raw scores (B, P) and maps (B, P, h, w) of a batch; higher = more anomalous."""

    @abstractmethod
    def judged(self, batch: Batch, units: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return image scores (B,), maps joined over the positions (B, h, w), and what counts of them; None: all.

        Args:
            batch: images.
            units: (B,) the images were learned, and are judged as if these units of theirs had not been; None: they
                are judged as any other.
        """

    @abstractmethod
    def judged_in_parts(self, parts: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Judge one image of very many tiles as :meth:`judged` does, from a few of them at a time.

        Args:
            parts: the tiles, as :meth:`~pickglass.detectors.loading.FeatureLoader.parts_of` gives them.
        """

    def leaves_out(self, units: Sequence[int]) -> bool:
        """Say whether :meth:`score_left_out` can judge images of these units once they were learned.

        Where it can, a fit needs to hold back no image for its thresholds.
        """
        return False

    def score_left_out(self, batch: Batch, units: Tensor) -> tuple[Tensor, Tensor]:
        """Score images that were learned as if their units had not been, as :meth:`score` does.

        Args:
            batch: images of the role ``fit``.
            units: (B,) the number of each image's unit, see :class:`FitContext`.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot leave out images that it has learned")

    def forget_images(self) -> None:
        """Drop what only :meth:`score_left_out` needs; called when the thresholds are set."""

    @property
    @abstractmethod
    def components(self) -> Mapping[str, Method]:
        """The methods, by name, of which each judges by itself; a detector of one method is its only one."""

    @abstractmethod
    def learn_mixing(
        self,
        known: Mapping[Method, Judged],
        judge: Callable[[Sequence[Method], Table], Mapping[Method, Judged]],
        rows: Table,
    ) -> dict[str, Any]:
        """Learn from good images how several components go together, and return what is worth telling.

        Args:
            known: what components say of good images, compared with what is usual; not of all components.
            judge: lets components judge further images.
            rows: good images that were not learned, where there are any.
        """

    @abstractmethod
    def mixed(self, judged: Sequence[Judged]) -> Judged:
        """Mix what the components, in their order, say of the same images."""

    def component_maps(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the maps that the map is made of by name, (B, P, h, w) each, where a method has several."""
        return {}

    def level_maps(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what each level adds at each cell, by its name: maps (B, P, h, w) at least 0, before any smoothing.

        ``pickglass explain`` tells their shares at a place. Empty where a method cannot tell its levels apart.
        """
        return self.component_maps(batch)

    def neighbours(self, batch: Batch, place: tuple[int, int, int, int], n: int) -> Sequence[Neighbour]:
        """Return what a method remembers of good images that is most like a cell, the nearest first.

        Args:
            batch: images to explain.
            place: image, position, row and column of the cell, on the grid of the maps.
            n: how many at most.

        Returns:
            Nothing where a method remembers no patches.
        """
        return ()

    # -- what others may ask -------------------------------------------------------------------------------------------

    def work_units(self, n_images: int) -> float:
        """Return how many images the training looks at in all, each as often as it is looked at, of so many images.

        A study estimates its time from this. The one pass that reads features is not counted: a statistical method,
        which needs no more, has 0.
        """
        return 0.0

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Return settings that make a fit quick at the cost of quality: to compare many candidates, and for tests.

        Args:
            n_images: how many images it will learn from.
            cells: h w, the cells of the first layer in an image or, where the detector is tiled, in a tile.
        """
        return {}

    @classmethod
    def settings_of_size(cls, taught: int, n_images: int, cells: int) -> dict[str, Any]:
        """Return settings by which a fit on a few images costs as much to use as the default fit on many.

        Args:
            taught: how many images it will learn from.
            n_images: from how many the fit learns that it stands for.
            cells: as of :meth:`quick_settings`.
        """
        return {}

    @classmethod
    def tunable(cls) -> Mapping[str, Sequence[Any]]:
        """Return the settings that ``--preset auto`` tries, each with the values that it tries besides the default."""
        return {}

    # -- positions that are learned in groups --------------------------------------------------------------------------

    def predicted_mb(self, context: FitContext) -> float:
        """Predict the megabytes that the learned tensors will take in the model file, before the first image."""
        single = self.clone()
        single.build(context.shapes, 1, context.seed)
        return context.positions * sum(t.numel() * t.element_size() for t in single.head_state().values()) / 1e6

    def stacked(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """Join a learned tensor of several groups of positions, (P_i, ...) each, to one (P, ...)."""
        return torch.cat(list(parts))

    def clone(self: Self) -> Self:
        """Make an unfitted detector with the same settings that reads the same backbone."""
        twin = self.configured(self.configuration())
        twin.extractor, twin._preprocess, twin.fusion = self.extractor, self._preprocess, self.fusion
        return twin

    def head_state(self) -> dict[str, Tensor]:
        """Return what the method has learned: its tensors by name, each with the position axis in front."""
        return {name: tensor for name, tensor in self.state_dict().items() if self.learns(name)}

    @staticmethod
    def learns(name: str) -> bool:
        """Say whether a tensor of this name is what the method learns, and not what surrounds each method."""
        return not name.startswith(("extractor.", "tiles.", "fusion.", "roi", "place_", "level_line"))

    def learned_forms(self, shapes: list[Shape], positions: int) -> dict[str, Form]:
        """Return the form of each tensor that :meth:`build` leaves out.

        A model file with tensors of another form is refused. A tensor that is not named has numbers of any kind, with
        the position axis in front.
        """
        return {}

    def go_on_from(self, learned: Mapping[str, Tensor], shapes: list[Shape], positions: int) -> None:
        """Lay out the method anew, so that its networks can be trained, and fill it with copies of what was learned."""
        self.build(shapes, positions, seed=0)
        built = self.head_state()
        with torch.no_grad():
            for name, tensor in learned.items():
                if name in built and built[name].shape == tensor.shape:
                    built[name].copy_(tensor)
                else:
                    assign(self, name, tensor.clone())

    def load_head_state(self, learned: Mapping[str, Tensor]) -> None:
        """Fill the method with tensors as :meth:`head_state` returns them."""
        for name, tensor in learned.items():
            if not assign(self, name, tensor):
                raise RuntimeError(f"{type(self).__name__} has no place for {name!r}")


def assign(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Put a tensor where a buffer or parameter of that name is, of whatever shape; False where there is none."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return False
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    elif leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        return False
    return True

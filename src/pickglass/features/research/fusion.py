"""Fusion joins the levels of the backbone before a method reads them, to one level or as many, whatever the method.

Measured: no clear gain on real defects, and a loss with some kinds (docs/fusion.md).

What is learned here is learned from good images before the method sees any, and then frozen; all positions share it.
Every level can first be put on one footing (``normalise``): ``"standardise"`` takes its mean off and divides each
channel by its standard deviation; ``"whiten"`` takes its mean off and multiplies by Sigma^-1/2 of its channels (ZCA,
Bell and Sejnowski 1997). Variances and Sigma are shrunk first, (1 - a) Sigma + a tr(Sigma) / C I, so that a channel
that is silent on good images is not blown up without bound.

The kinds:

- ``"concat"``: all levels brought to the finest grid, bilinear, their channels one after the other.
- ``"pyramid"``: the top-down half of a feature pyramid (Lin et al. 2017, fig. 3). Each level is projected to ``dims``
  channels; from the coarsest on, what has been summed is enlarged and added to the next finer level. There is nothing
  to train the lateral projections on, so they are Q V^T: V the leading min(dims, C) principal axes of the level on
  good images, Q a drawn matrix with orthonormal columns. Q keeps distances, and turns the levels against each other;
  without it the first components of all levels, by far the largest, would be added onto each other.
- ``"bilinear"``: local compact bilinear pooling (Gao et al. 2016, algorithm 2). x is the concatenation; the mean of
  x x^T over patch x patch cells as its Tensor Sketch (Pham and Pagh 2013) of ``dims`` numbers, then the signed square
  root and unit length. The convolution of two count sketches is a product of spectra; the discrete Fourier transform
  is linear and so is a count sketch, so each spectrum is one matrix product, which every exporter knows.
  Inner products of sketches err by about |x|^2 |y|^2 / sqrt(d): of whitened levels, where no direction stands out,
  that is most of what is left unless ``dims`` is far above their number of channels.
- ``"attention"``: weights on channels and on places, from good images only, then as ``"concat"``. With e_c the variance
  of channel c at a cell over the images, mean over the cells, and v_c its variance over images and cells, the channel's
  weight is sqrt(v_c / e_c): 1 where the place says nothing about a channel, as on textures, more where the channel
  repeats itself from part to part. With e_cij the variance at cell ij, the weight of the cell is
  1 / sqrt(mean over c of e_cij / e_c): less where good parts differ from each other. Of levels as the backbone gives
  them for the places, as normalised for the channels; all between 1/4 and 4.

``scales=(1, 0.5)`` runs the backbone on the image at full and at half size and fuses the levels of all scales, the way
image pyramids came before feature pyramids (Lin et al. 2017, fig. 1a): what is large becomes small enough for the
layers that are fine. ``"pyramid"`` sums them from the coarsest grid down whatever scale they come from.

``levels="all"`` gives the method as many levels as it gets: each step of the pyramid, each weighted level.

Letters: N images times positions, C channels of a level, D of all levels, h x w cells, d ``dims``, K = d // 2 + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.gaussian.moments import GridMoments, GridSums
from pickglass.nn.maps import kept_cells, neighbourhood_mean, to_grid

__all__ = ["Fusion", "FusionKind", "FusionOptions", "FusionSettings"]

FusionKind = Literal["concat", "pyramid", "bilinear", "attention"]
Normalise = Literal["none", "standardise", "whiten"]
Shape = tuple[int, int, int]

_LIMIT = 4.0  # weights of attention lie between this and its reciprocal
_ROOT_EPS = 1e-6  # of the largest possible value: below it the signed square root is a straight line


class FusionOptions(TypedDict, total=False):
    """The fields of :class:`FusionSettings` that have defaults can be given as keyword arguments."""

    normalise: Normalise
    dims: int
    patch: int
    levels: Literal["one", "all"]
    shrinkage: float
    scales: Sequence[float]


@dataclass(frozen=True)
class FusionSettings:
    """The levels of a detector are fused like this.

    Attributes:
        kind: ``"concat"``, ``"pyramid"``, ``"bilinear"`` or ``"attention"``; see
            :mod:`pickglass.features.research.fusion`.
        normalise: what is done to each level first: ``"none"``, ``"standardise"`` or ``"whiten"``.
        dims: channels after ``"pyramid"`` and ``"bilinear"``.
        patch: side of the neighbourhood that ``"bilinear"`` pools over, in cells of the finest level, odd.
        levels: what ``"pyramid"`` and ``"attention"`` give the method: ``"one"`` level on the finest grid, or ``"all"``
            in the order of the detector's layers, scale after scale.
        shrinkage: a, of variances and covariances; from 0 to 1, above 0 to whiten.
        scales: scales of the input at which the backbone runs, e.g. (1.0, 0.5).
    """

    kind: FusionKind
    normalise: Normalise = "none"
    dims: int = 256
    patch: int = 3
    levels: Literal["one", "all"] = "one"
    shrinkage: float = 0.01
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        choices = {"kind": get_args(FusionKind), "normalise": get_args(Normalise), "levels": ("one", "all")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} of fusion: expected one of {', '.join(allowed)}")
        if self.dims < 2:
            raise InputError(f"dims={self.dims!r} of fusion: expected at least 2 channels, e.g. 256")
        if self.patch < 1 or self.patch % 2 == 0:
            raise InputError(f"patch={self.patch!r} of fusion: expected an odd number of cells, e.g. 3")
        if not 0 <= self.shrinkage <= 1 or (self.normalise == "whiten" and self.shrinkage == 0):
            raise InputError(f"shrinkage={self.shrinkage!r} of fusion: expected 0 to 1, above 0 to whiten, e.g. 0.01")
        numbers = all(isinstance(s, (int, float)) and 1 / 16 <= s <= 4 for s in self.scales)
        if not self.scales or not numbers or len(set(self.scales)) < len(self.scales):
            raise InputError(
                f"scales={self.scales!r} of fusion: expected numbers from 1/16 to 4, each once: (1.0, 0.5)"
            )
        if self.levels == "all" and self.kind in ("concat", "bilinear"):
            raise InputError(f"levels='all' has no meaning for {self.kind!r}: use 'pyramid' or 'attention'")

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict from which :meth:`from_json` makes equal settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FusionSettings:
        """Make settings of what :meth:`to_json` returned."""
        given = data.get("scales", 1.0)
        return cls(**{**data, "scales": tuple(given) if isinstance(given, (list, tuple)) else (given,)})


class Fusion(nn.Module):
    """A fusion joins the levels of one backbone; with ``wants_images`` it has to see good images first.

    Args:
        settings: which kind, and how.
        shapes: (C, h, w) of each level, of all scales.
        seed: decides what is drawn at random.

    Attributes:
        shapes: (C, h, w) of each level that it gives.

    Example:
        >>> fusion = Fusion(FusionSettings("concat"), [(8, 16, 16), (24, 4, 4)])
        >>> fusion.shapes
        [(32, 16, 16)]
    """

    def __init__(self, settings: FusionSettings, shapes: Sequence[Shape], seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.normalisers = nn.ModuleList(_Normaliser(settings) for _ in shapes)
        self.mix = _KINDS[settings.kind](settings, list(shapes), seed)
        self.shapes = self.mix.shapes
        self._sums = [GridSums(shape) for shape in shapes]

    @property
    def wants_images(self) -> bool:
        """Tell whether the fusion learns anything from images."""
        return self.settings.normalise != "none" or self.settings.kind in ("pyramid", "attention")

    def observe(self, batch: Batch) -> None:
        """Learn from a batch of good images as the backbone gives them; each image comes once."""
        for level, sums in zip(batch.levels, self._sums, strict=True):
            keep = kept_cells(batch.keep, (level.shape[3], level.shape[4]))  # (B, P, h, w)
            sums.add(level.flatten(0, 1), None if keep is None else keep.flatten(0, 1))

    def settle(self) -> None:
        """End the learning; from here on nothing changes.

        Raises:
            InputError: no cell counted, or the features are not finite.
        """
        if self.wants_images:
            for i, sums in enumerate(self._sums):
                moments = sums.moments()
                matrix = self._normaliser(i).learn(moments)
                self.mix.learn(i, moments, matrix)
        self._sums = []

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse levels (N, C, h, w) into those of ``shapes``."""
        return self.mix([self._normaliser(i)(level) for i, level in enumerate(levels)])  # type: ignore[no-any-return]

    def of_positions(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse levels (B, P, C, h, w), each position like the others."""
        images = len(levels[0])
        return tuple(x.unflatten(0, (images, -1)) for x in self([level.flatten(0, 1) for level in levels]))

    def _normaliser(self, i: int) -> _Normaliser:
        return self.normalisers[i]  # type: ignore[return-value]


# -- one footing -------------------------------------------------------------------------------------------------------


class _Normaliser(nn.Module):
    """A normaliser has mean and scale of one level: ``scale`` is (C,) to standardise, (C, C) to whiten."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.mean: Tensor  # (C,)
        self.scale: Tensor
        self.register_buffer("mean", None)
        self.register_buffer("scale", None)

    def learn(self, moments: GridMoments) -> Tensor:
        """Learn mean and scale; return the scale as a matrix of doubles (C, C)."""
        c = len(moments.mean)
        shrunk = _shrunk(moments.covariance, self.settings.shrinkage)
        if self.settings.normalise == "none":
            return torch.eye(c).to(shrunk)
        self.mean = moments.mean.float()
        if self.settings.normalise == "standardise":
            scale = shrunk.diagonal().clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
            self.scale = scale.float()
            return scale.diag()
        values, vectors = torch.linalg.eigh(shrunk)
        floor = self.settings.shrinkage * shrunk.diagonal().mean()  # no eigenvalue is smaller, but for rounding
        white: Tensor = (vectors * torch.maximum(values, floor).rsqrt()) @ vectors.T
        self.scale = white.float()
        return white

    def forward(self, level: Tensor) -> Tensor:
        if self.settings.normalise == "none":
            return level
        centred = level - self.mean[:, None, None]
        if self.settings.normalise == "standardise":
            return centred * self.scale[:, None, None]
        return _mixed(centred, self.scale)


def _shrunk(covariance: Tensor, share: float) -> Tensor:
    """Shrink a covariance to (1 - a) Sigma + a tr(Sigma) / C I; the identity where nothing varies at all."""
    mean = covariance.diagonal().mean()
    identity = torch.eye(len(covariance)).to(covariance)
    return (1 - share) * covariance + share * mean * identity if float(mean) > 0 else identity


def _mixed(level: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of a level (N, C, h, w) by a matrix (c, C): (N, c, h, w)."""
    return F.conv2d(level, matrix[:, :, None, None])


# -- the kinds ---------------------------------------------------------------------------------------------------------


class _Concat(nn.Module):
    """Concatenation brings all levels to the finest grid, their channels one after the other."""

    def __init__(self, settings: FusionSettings, shapes: list[Shape], seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.given = shapes
        self.grid = max(((h, w) for _, h, w in shapes), key=lambda grid: grid[0] * grid[1])

    @property
    def shapes(self) -> list[Shape]:
        """Tell (C, h, w) of each level that comes out."""
        return self.given if self.settings.levels == "all" else [(sum(c for c, _, _ in self.given), *self.grid)]

    def learn(self, i: int, moments: GridMoments, matrix: Tensor) -> None:
        """Learn from the moments of level i, which is then multiplied by ``matrix`` (C, C); nothing is learned here."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.settings.levels == "all":
            return tuple(levels)
        return (torch.cat([to_grid(level, self.grid) for level in levels], dim=1),)


class _Attention(_Concat):
    """Attention puts weights on channels (C, 1, 1) and on cells (1, h, w)."""

    def __init__(self, settings: FusionSettings, shapes: list[Shape], seed: int) -> None:
        super().__init__(settings, shapes, seed)
        for i in range(len(shapes)):
            self.register_buffer(f"channels{i}", None)
            self.register_buffer(f"cells{i}", None)

    def learn(self, i: int, moments: GridMoments, matrix: Tensor) -> None:
        total, within = (matrix @ m @ matrix.T for m in (moments.covariance, moments.within))
        ratio = _ratio(total.diagonal(), within.diagonal(), self.settings.shrinkage * total.diagonal().mean())
        noise = moments.within.diagonal()[:, None, None]
        unrest = _ratio(moments.spread, noise, self.settings.shrinkage * noise.mean())  # (C, h, w)
        unrest = unrest.mean(0, keepdim=True).nan_to_num(1.0)
        setattr(self, f"channels{i}", _limited(ratio.sqrt().nan_to_num(1.0))[:, None, None])
        setattr(self, f"cells{i}", _limited(unrest.rsqrt()))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward(
            [x * getattr(self, f"channels{i}") * getattr(self, f"cells{i}") for i, x in enumerate(levels)]
        )


def _ratio(above: Tensor, below: Tensor, floor: Tensor) -> Tensor:
    """Divide variances; the ratio is 1 where both are nothing, and NaN where one is."""
    floor = floor.clamp(min=torch.finfo(torch.float32).tiny)
    return (above.clamp(min=0) + floor) / (below.clamp(min=0) + floor)


def _limited(weights: Tensor) -> Tensor:
    return weights.clamp(1 / _LIMIT, _LIMIT).float()


class _Pyramid(_Concat):
    """The pyramid projects each level by (d, C) and sums from the coarsest level down."""

    def __init__(self, settings: FusionSettings, shapes: list[Shape], seed: int) -> None:
        super().__init__(settings, shapes, seed)
        self.order = sorted(range(len(shapes)), key=lambda i: shapes[i][1] * shapes[i][2])  # coarsest first
        self.seed = seed
        for i in range(len(shapes)):
            self.register_buffer(f"lateral{i}", None)

    @property
    def shapes(self) -> list[Shape]:
        if self.settings.levels == "one":
            return [(self.settings.dims, *self.grid)]
        return [(self.settings.dims, h, w) for _, h, w in self.given]

    def learn(self, i: int, moments: GridMoments, matrix: Tensor) -> None:
        rank = min(self.settings.dims, len(matrix))
        axes = torch.linalg.eigh(matrix @ moments.covariance @ matrix.T).eigenvectors[:, -rank:]  # (C, rank)
        drawn = torch.randn(self.settings.dims, rank, generator=_generator(self.seed, i), dtype=torch.float64)
        turn = torch.linalg.qr(drawn).Q.to(axes)  # (d, rank)
        setattr(self, f"lateral{i}", (turn @ axes.T).float())

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        steps: dict[int, Tensor] = {}
        total: Tensor | None = None
        for i in self.order:
            lateral = _mixed(levels[i], getattr(self, f"lateral{i}"))  # (N, d, h, w)
            total = lateral if total is None else lateral + to_grid(total, self.given[i][1:])
            steps[i] = total
        return (steps[self.order[-1]],) if self.settings.levels == "one" else tuple(steps[i] for i in range(len(steps)))


class _Bilinear(_Concat):
    """Bilinear fusion is compact bilinear pooling of the concatenation."""

    def __init__(self, settings: FusionSettings, shapes: list[Shape], seed: int) -> None:
        super().__init__(settings, shapes, seed)
        wide, d = sum(c for c, _, _ in shapes), settings.dims
        spectra = []
        for i in range(2):
            generator = _generator(seed, i)
            place = torch.randint(d, (wide,), generator=generator)  # h of a count sketch
            sign = 2.0 * torch.randint(2, (wide,), generator=generator) - 1  # and its s
            sketch = torch.zeros(wide, d, dtype=torch.float64).scatter_(1, place[:, None], sign[:, None].double())
            spectra.append(torch.view_as_real(torch.fft.rfft(sketch)).permute(2, 1, 0))  # (2, K, D): real, imaginary
        self.spectra: Tensor  # (2, 2, K, D) of both count sketches
        self.register_buffer("spectra", torch.stack(spectra).float())
        k = d // 2 + 1
        basis = torch.eye(k, dtype=torch.complex128)
        back = torch.cat([torch.fft.irfft(basis, d), torch.fft.irfft(1j * basis, d)])  # (2 K, d)
        self.back: Tensor  # (d, 2 K), from a spectrum, real parts before imaginary ones
        self.register_buffer("back", back.T.float().contiguous(), persistent=False)

    @property
    def shapes(self) -> list[Shape]:
        return [(self.settings.dims, *self.grid)]

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        sketched = self.sketch(super().forward(levels)[0])  # (N, d, h, w)
        pooled = F.normalize(neighbourhood_mean(sketched, self.settings.patch), dim=1)
        # the slope of a plain square root at 0 is infinite, and a student may be trained through it
        return (F.normalize(pooled / (pooled.abs() + _ROOT_EPS).sqrt(), dim=1),)

    def sketch(self, x: Tensor) -> Tensor:
        """Compute the Tensor Sketch of x x^T at each cell: (N, D, h, w) -> (N, d, h, w)."""
        (real, imaginary), (other_real, other_imaginary) = (
            (_mixed(x, spectrum[0]), _mixed(x, spectrum[1])) for spectrum in self.spectra
        )  # each (N, K, h, w)
        product = [
            real * other_real - imaginary * other_imaginary,
            real * other_imaginary + imaginary * other_real,
        ]
        return _mixed(torch.cat(product, dim=1), self.back)


def _generator(seed: int, i: int) -> torch.Generator:
    """Make the random numbers of a fusion's part i."""
    return torch.Generator().manual_seed(1000 * seed + i)


_KINDS: dict[str, type[_Concat]] = {
    "concat": _Concat,
    "pyramid": _Pyramid,
    "bilinear": _Bilinear,
    "attention": _Attention,
}

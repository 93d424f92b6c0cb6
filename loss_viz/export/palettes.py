"""256 colours for a film: one choice for all of its stills, so that nothing flickers where nothing moves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.spatial import KDTree

WHITE = 255  # the paper stays as white as it is

N_LEVELS = 64  # of red, of green and of blue, that are told apart

STEP = 256 // N_LEVELS

GRAIN = 12  # how far colours are moved to and fro, of 255, so that the steps between 256 of them are not seen


@dataclass(frozen=True, eq=False)
class Palette:
    """Colours, and which of them stands for any other.

    Attributes:
        colors: `(256, 3)`, red, green and blue; the first is white.
        nearest: `(64 * 64 * 64,)`, for each level of red, green and blue the index of the nearest one.
    """

    colors: UInt8[np.ndarray, "256 3"]
    nearest: UInt8[np.ndarray, " n_codes"]

    def reduce(self, still: Image.Image) -> Image.Image:
        """The still in these colours.

        What falls between two of them becomes a grain of both, which depends on the place and the colour of the pixel
        alone: where nothing moves, nothing changes from still to still, and little is stored.
        """
        pixels = np.asarray(still).astype(np.int16)
        height, width = pixels.shape[:2]
        grain = np.rint(GRAIN * _weave(3)).astype(np.int16)
        grain = np.tile(grain, (height // len(grain) + 1, width // len(grain) + 1))[:height, :width, None]
        index = self.nearest[_encode((pixels + grain).clip(0, 255))]
        index[(pixels == WHITE).all(axis=2)] = 0
        reduced = Image.fromarray(index)
        reduced.putpalette(self.colors.tobytes())
        return reduced


def choose_palette(stills: Sequence[Image.Image]) -> Palette:
    """Colours that serve all of these.

    They count by the square root of the pixels that have them: a ball is small, and must keep its colour.
    """
    codes, counts = np.unique(_encode(np.stack([np.asarray(still) for still in stills])), return_counts=True)
    repeated = np.repeat(_decode(codes), np.ceil(np.sqrt(counts)).astype(int), axis=0)
    several = Image.fromarray(repeated[None]).quantize(255, kmeans=1)
    chosen = np.array(several.getpalette(), np.uint8).reshape(-1, 3)[:255]
    colors = np.full((256, 3), WHITE, np.uint8)
    colors[1 : 1 + len(chosen)] = chosen
    _, nearest = KDTree(colors.astype(float)).query(_decode(np.arange(N_LEVELS**3)).astype(float))
    return Palette(colors, nearest.astype(np.uint8))


def _encode(pixels: Int[np.ndarray, "*shape 3"] | UInt8[np.ndarray, "*shape 3"]) -> Int[np.ndarray, "*shape"]:
    return (pixels // STEP).astype(np.int32) @ np.array([N_LEVELS**2, N_LEVELS, 1], np.int32)


def _decode(codes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    levels = np.stack([codes // N_LEVELS**2, codes // N_LEVELS % N_LEVELS, codes % N_LEVELS], axis=1)
    return (levels * STEP + STEP // 2).astype(np.uint8)


def _weave(doublings: int) -> Float[np.ndarray, "n n"]:
    """Bayer's matrix, from -0.5 to 0.5: wherever it is cut, the cells above are spread evenly."""
    order = np.zeros((1, 1), int)
    for _ in range(doublings):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    return (order + 0.5) / order.size - 0.5

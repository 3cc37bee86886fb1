"""A room with one object in it, drawn from an index: the six factors of 3D Shapes (Burgess & Kim, 2018), rendered here.

Index order is that of the published set, the orientation running fastest:

    floor hue 10, wall hue 10, object hue 10, scale 8, shape 4, orientation 15        480,000 pictures

Shading multiplies the colour of a surface, so a picture is  sum over materials of  light_m(pixel) * colour_m.  Light
depends on scale, shape and orientation alone: 480 scenes are ray-cast, once a size, and every picture is a mixture of
one scene's three light maps. The hues cost three multiplications a pixel.
"""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from dataset.base import Source, Spec, text_identity

FACTORS = ("floor hue", "wall hue", "object hue", "scale", "shape", "orientation")
FACTOR_SIZES = (10, 10, 10, 8, 4, 15)
MATERIALS = ("floor", "wall", "object")
SHAPES = ("cube", "cylinder", "sphere", "capsule")
COUNT = int(np.prod(FACTOR_SIZES))
SPECS = (Spec("shapes3d", 64, labels="factors", label_names=FACTORS, factor_sizes=FACTOR_SIZES,
              entropy=math.log(COUNT)),)

_SCENES = int(np.prod(FACTOR_SIZES[3:]))  # what the hues do not change
_SCALES = np.linspace(0.75, 1.25, 8)
_ANGLES = np.radians(np.linspace(-30.0, 30.0, 15))  # of the camera around the vertical axis
_PALETTE = np.array([colorsys.hsv_to_rgb(k / 10, 1.0, 1.0) for k in range(10)], dtype=np.float32)  # [10, 3]

_SUPERSAMPLE = 4  # rays a pixel, each way
_CHUNK = 256  # pictures mixed at a time

# The world: y is up, the floor is y = 0, the object stands on the origin.
_WALL = 2.3  # the walls are x, z = +-_WALL
_CAMERA = np.array([0.0, 3.3, 6.6])  # before it turns
_TARGET = np.array([0.0, 0.85, 0.0])
_VIEW = np.tan(np.radians(15.5))  # half the picture, at distance one
_LIGHT = np.array([0.45, 0.80, 0.55]) / np.linalg.norm([0.45, 0.80, 0.55])
_AMBIENT, _DIFFUSE = 0.40, 0.60
_WALLPAPER = 0.8  # walls are duller than the rest, so that an object of the wall's hue is still seen
_SHADOW = 0.55  # what is left of the diffuse light in the object's shadow

# At scale 1: half the edge of the cube, and radius and height of the others.
_CUBE, _CYLINDER, _SPHERE, _CAPSULE = 0.72, (0.72, 1.55), 0.86, (0.60, 2.1)


def read(spec: Spec, root: Path) -> Source:
    return Source(Rendered(), factors(np.arange(COUNT)))


class Rendered:
    """All pictures, drawn when asked for."""

    ready = False

    def __len__(self) -> int:
        return COUNT

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        return render(rows, size)

    def identity(self) -> str:
        return text_identity(COUNT, render([0, COUNT - 1], 8).tobytes())


def factors(indices) -> np.ndarray:
    """The six factors of numbered pictures: int64 [B, 6], in the order of `FACTORS`."""
    return np.stack(np.unravel_index(np.asarray(indices, dtype=np.int64), FACTOR_SIZES), axis=-1)


def render(indices, size: int = 64) -> np.ndarray:
    """Pictures of the given numbers (0 .. COUNT - 1), `size` pixels a side: uint8 [B, 3, size, size]."""
    indices = np.asarray(indices, dtype=np.int64)
    pictures = np.empty((len(indices), 3, size, size), dtype=np.uint8)
    for start in range(0, len(indices), _CHUNK):
        part = indices[start : start + _CHUNK]
        scenes, which = np.unique(part % _SCENES, return_inverse=True)
        light = np.stack([_light(int(scene), size) for scene in scenes])  # [S, 3 materials, P]
        colours = _PALETTE[factors(part)[:, :3]]  # [B, 3 materials, 3 rgb]
        mixed = np.matmul(colours.transpose(0, 2, 1), light[which])  # [B, 3 rgb, P]
        np.rint(255.0 * mixed, out=mixed)
        pictures[start : start + _CHUNK] = mixed.reshape(-1, 3, size, size)
    return pictures


def coverage(indices, size: int = 64) -> np.ndarray:
    """How much of each pixel is floor, wall and object: float32 [B, 3, size, size], summing to 1 over the three."""
    found = [_coverage(int(scene), size) for scene in np.asarray(indices, dtype=np.int64) % _SCENES]
    return np.stack(found).reshape(-1, 3, size, size)


@lru_cache(maxsize=2 * _SCENES)
def _light(scene: int, size: int) -> np.ndarray:
    """Light on floor, walls and object, averaged over the rays of a pixel: float32 [3, size * size] in [0, 1]."""
    masks, light = _cast(scene, size)
    dullness = np.array([[1.0], [_WALLPAPER], [1.0]], dtype=np.float32)
    return _average(masks * light * dullness, size).astype(np.float32)


@lru_cache(maxsize=_SCENES)
def _coverage(scene: int, size: int) -> np.ndarray:
    """The share of a pixel's rays that meet floor, walls and object: float32 [3, size * size]."""
    return _average(_cast(scene, size)[0], size).astype(np.float32)


def _cast(scene: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ray by ray, what is met (floor, walls, object: bool [3, R]) and the light there [R]."""
    scale, shape, orientation = np.unravel_index(scene, FACTOR_SIZES[3:])
    hit_object = (_hit_cube, _hit_cylinder, _hit_sphere, _hit_capsule)[shape]
    origin, rays = _camera(_ANGLES[orientation], size * _SUPERSAMPLE)  # [3], [3, R]

    room_distance, room_normal = _hit_room(origin, rays)
    distance, normal = hit_object(origin[:, None], rays, _SCALES[scale])
    on_object = distance < room_distance
    on_floor = ~on_object & (room_normal[1] > 0.5)

    normal = np.where(on_object, normal, room_normal)
    diffuse = np.clip(np.tensordot(_LIGHT.astype(np.float32), normal, 1), 0.0, 1.0)
    ground = origin[:, None] + rays * room_distance + 1e-3 * room_normal
    shaded, _ = hit_object(ground, _LIGHT[:, None].astype(np.float32), _SCALES[scale])
    diffuse = np.where(~on_object & np.isfinite(shaded), _SHADOW * diffuse, diffuse)
    light = _AMBIENT + _DIFFUSE * diffuse  # [R]

    return np.stack([on_floor, ~on_object & ~on_floor, on_object]), light


def _average(rays: np.ndarray, size: int) -> np.ndarray:
    """[M, R] values of rays, in rows of size * _SUPERSAMPLE -> [M, size * size] means over pixels."""
    grid = rays.reshape(len(rays), size, _SUPERSAMPLE, size, _SUPERSAMPLE)
    return grid.mean(axis=(2, 4)).reshape(len(rays), -1)


@lru_cache(maxsize=len(_ANGLES))
def _camera(angle: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera stands [3], and the unit directions of side * side rays, row by row from the top: [3, R]."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    origin = turn @ _CAMERA
    forward = (_TARGET - origin) / np.linalg.norm(_TARGET - origin)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)

    steps = _VIEW * ((2.0 * np.arange(side) + 1.0) / side - 1.0)
    down, across = np.meshgrid(steps, steps, indexing="ij")
    rays = forward[:, None] + right[:, None] * across.ravel() - up[:, None] * down.ravel()
    rays /= np.linalg.norm(rays, axis=0)
    return origin.astype(np.float32), rays.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Where a ray origin + t * ray, t > 0, meets a surface: t [R] (infinity: never) and the unit normal there [3, R].
# `origin` is [3, R] or [3, 1], `rays` is [3, R] or [3, 1].


def _hit_room(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The far sides of the room's box, seen from outside or inside: the near walls are never in the way."""
    sides = np.sign(rays) * np.array([[_WALL], [0.0], [_WALL]], dtype=np.float32)
    with np.errstate(divide="ignore"):
        t = (sides - origin[:, None]) / rays  # [3, R]
    t[1] = np.where(rays[1] < 0, t[1], np.inf)  # no ceiling
    axis = t.argmin(axis=0)
    normal = np.zeros_like(rays)
    np.put_along_axis(normal, axis[None], -np.sign(np.take_along_axis(rays, axis[None], 0)), 0)
    return t.min(axis=0), normal


def _hit_cube(origin, rays, scale):
    """The cube stands square in the room."""
    half = _CUBE * scale
    centre = np.array([[0.0], [half], [0.0]], dtype=np.float32)
    safe = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    near = (centre - origin - half * np.sign(safe)) / safe
    far = (centre - origin + half * np.sign(safe)) / safe
    entry = near.max(axis=0)
    hit = (entry <= far.min(axis=0)) & (entry > 0)
    axis = near.argmax(axis=0)[None]
    normal = np.zeros(near.shape, dtype=np.float32)
    np.put_along_axis(normal, axis, -np.sign(np.take_along_axis(np.broadcast_to(rays, near.shape), axis, 0)), 0)
    return np.where(hit, entry, np.inf), normal


def _hit_sphere(origin, rays, scale, radius=_SPHERE, height=_SPHERE):
    """A ball whose centre is `height` above the floor (both at scale 1)."""
    offset = origin - np.array([[0.0], [height * scale], [0.0]], dtype=np.float32)
    t = _near_root(1.0, (offset * rays).sum(0), (offset * offset).sum(0) - (radius * scale) ** 2)
    return t, _unit(offset + rays * np.where(np.isfinite(t), t, 0.0))


def _hit_tube(origin, rays, radius, bottom, top):
    """The side of an upright cylinder, without its ends."""
    flat_origin, flat_rays = origin[[0, 2]], rays[[0, 2]]
    t = _near_root(
        (flat_rays * flat_rays).sum(0), (flat_origin * flat_rays).sum(0), (flat_origin * flat_origin).sum(0) - radius**2
    )
    point = origin + rays * np.where(np.isfinite(t), t, 0.0)
    t = np.where((point[1] >= bottom) & (point[1] <= top), t, np.inf)
    return t, _unit(point * np.array([[1.0], [0.0], [1.0]], dtype=np.float32))


def _hit_cylinder(origin, rays, scale):
    radius, height = (scale * value for value in _CYLINDER)
    side, normal = _hit_tube(origin, rays, radius, 0.0, height)
    lid = (height - origin[1]) / np.where(np.abs(rays[1]) < 1e-9, 1e-9, rays[1])
    point = origin + rays * lid
    lid = np.where((lid > 0) & (point[0] ** 2 + point[2] ** 2 <= radius**2), lid, np.inf)
    up = np.array([[0.0], [1.0], [0.0]], dtype=np.float32)
    return np.minimum(side, lid), np.where(lid < side, up, normal)


def _hit_capsule(origin, rays, scale):
    radius, height = _CAPSULE
    hits = [
        _hit_tube(origin, rays, radius * scale, radius * scale, (height - radius) * scale),
        _hit_sphere(origin, rays, scale, radius, radius),
        _hit_sphere(origin, rays, scale, radius, height - radius),
    ]
    distances = np.stack([distance for distance, _ in hits])
    first = distances.argmin(axis=0)
    return distances.min(axis=0), np.choose(first, [normal for _, normal in hits])


def _near_root(a, b, c):
    """The smaller root of a t^2 + 2 b t + c = 0 where it is positive, else infinity."""
    inside = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (-b - np.sqrt(np.maximum(inside, 0.0))) / a
    return np.where((inside >= 0) & (t > 0), t, np.inf)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)

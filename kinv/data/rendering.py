"""Rendering of scenes: a signed-distance ray-marcher in NumPy.

World coordinates: x to the right, y up, z away from the camera; the floor is
y = 0 and the object stands on the origin. Lengths are in units of an object of
size 1. Worker processes import this without TensorFlow.
"""

import functools
import multiprocessing
import os
import threading

import numpy as np

# Eighths of the hue circle, starting at red.
OBJECT_HUES = (
    *("red", "yellow", "lime", "green"),
    *("cyan", "blue", "purple", "magenta"),
)
CAMERA_POSITION = (0.0, 1.9, -6.0)
CAMERA_TARGET = (0.0, 0.88, 0.0)
FOCAL_LENGTH = 3.55  # in units of half the picture's side
WALL_DISTANCE = 1.9
_SAMPLES = 2  # per pixel and axis
_HIT = 2e-3
_MARCH_STEPS = 40
_SHADOW_STEPS = 24
_ROUNDING = 0.03  # radius of a box's edges
_PENUMBRA = 14.0  # sharpness of the shadow's edge


def end_with_parent():
    """Has this process end when the one that started it does, even killed.

    A pool's workers wait for work from a pipe that they hold open themselves.
    """

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _unit(vector):
    vector = np.asarray(vector, np.float32)
    return vector / np.linalg.norm(vector)


# Towards the lamp, from an object of azimuth 0: from the front left. The lamp
# stands on the object's turntable, so that shading and shadow show the azimuth
# of round shapes too.
_LAMP = _unit((-0.62, 0.95, -0.62))


def _cylinder(x, y, z):
    radial = _length(x, z) - 0.62
    axial = np.abs(y - 0.8) - 0.8
    inside = np.minimum(np.maximum(radial, axial), 0)
    return inside + _length(np.maximum(radial, 0), np.maximum(axial, 0))


def _cone(x, y, z):
    # The slanted side's half-space, cut at the floor: a lower bound of the
    # distance, which is all that marching needs.
    radius, height = 0.84, 1.8
    slant = np.hypot(radius, height)
    side = (_length(x, z) * height + (y - height) * radius) / slant
    return np.maximum(side, -y)


def _torus(x, y, z):
    return _length(_length(x, y - 0.95) - 0.68, z) - 0.27


def _octahedron(x, y, z):
    sides = np.abs(x) + np.abs(y - 1.05) + np.abs(z) - 1.05
    return sides * np.float32(3**-0.5)


def _capsule(x, y, z):
    along = np.clip(y, 0.42, 1.5)
    return _length(x, y - along, z) - 0.42


def _ellipsoid(x, y, z):
    # First-order distance (value over gradient); a little too long beside
    # the flat side, hence the factor.
    y = y - 0.52
    value = _length(x / 1.1, y / 0.52, z / 0.75)
    slope = _length(x / 1.1**2, y / 0.52**2, z / 0.75**2)
    return 0.9 * value * (value - 1) / np.maximum(slope, 1e-6)


def _cross(x, y, z):
    y = y - 0.98
    upright = _box(x, y, z, 0.3, 0.98, 0.3)
    return np.minimum(upright, _box(x, y, z, 0.98, 0.3, 0.3))


def _length(*components):
    return np.sqrt(sum(component * component for component in components))


def _box(x, y, z, width, height, depth):
    """Distance to a box of these half sides, with rounded edges."""
    x = np.abs(x) - (width - _ROUNDING)
    y = np.abs(y) - (height - _ROUNDING)
    z = np.abs(z) - (depth - _ROUNDING)
    inside = np.minimum(np.maximum(np.maximum(x, y), z), 0)
    outside = _length(np.maximum(x, 0), np.maximum(y, 0), np.maximum(z, 0))
    return inside + outside - _ROUNDING


# Per shape: signed distance, and centre height and radius of a sphere that
# holds the object, all for size 1.
_GEOMETRY = {
    "sphere": (lambda x, y, z: _length(x, y - 0.9, z) - 0.9, 0.9, 0.91),
    "cube": (
        lambda x, y, z: _box(x, y - 0.72, z, 0.72, 0.72, 0.72),
        0.72,
        1.26,
    ),
    "cylinder": (_cylinder, 0.8, 1.03),
    "cone": (_cone, 0.71, 1.11),
    "torus": (_torus, 0.95, 0.97),
    "octahedron": (_octahedron, 1.05, 1.07),
    "capsule": (_capsule, 0.96, 0.98),
    "ellipsoid": (_ellipsoid, 0.52, 1.12),
    "pillar": (
        lambda x, y, z: _box(x, y - 0.98, z, 0.38, 0.98, 0.38),
        0.98,
        1.13,
    ),
    "cross": (_cross, 0.98, 1.07),
}
SHAPES = tuple(_GEOMETRY)
_NOT_CONVEX = ("torus", "cross")


def render(factors, image_size):
    """Renders scenes.

    Args:
        factors: dict as returned by `scene_factors`, arrays `(n,)`.
        image_size: side of the images in pixels.

    Returns:
        uint8 array `(n, image_size, image_size, 3)`.
    """
    factors = {name: np.asarray(values) for name, values in factors.items()}
    room = _room(image_size)
    wall = _rgb(factors["wall_hue"], saturation=0.58, value=0.88)
    floor = _rgb(factors["floor_hue"], saturation=0.62, value=0.80)
    hue = factors["object_hue"] / len(OBJECT_HUES)
    objects = _rgb(hue, saturation=0.86, value=0.98)
    light = np.where(room["on_floor"][:, None], floor[:, None], wall[:, None])
    light *= room["shade"][:, None]
    for index, name in enumerate(SHAPES):
        rows = np.flatnonzero(factors["shape"] == index)
        if rows.size:
            size, azimuth = factors["size"][rows], factors["azimuth"][rows]
            scene = _Scene(name, room, rows, size, azimuth)
            scene.draw_shadow(light)
            scene.draw_object(light, objects, floor)
    count, side = len(light), image_size
    light = light.reshape(count, side, _SAMPLES, side, _SAMPLES, 3)
    # Two plain sums are several times faster than a mean over two axes.
    light = sum(light[:, :, i] for i in range(_SAMPLES))
    light = sum(light[:, :, :, i] for i in range(_SAMPLES)) / _SAMPLES**2
    brightness = factors["brightness"].astype(np.float32)[:, None, None, None]
    return np.rint(255 * brightness * np.minimum(light, 1)).astype(np.uint8)


@functools.lru_cache
def _room(image_size):
    """Camera rays and the empty room, per sample of the picture."""
    side = image_size * _SAMPLES
    axis = (2 * (np.arange(side) + 0.5) / side - 1) / FOCAL_LENGTH
    across, down = (a.ravel() for a in np.meshgrid(axis, axis))
    position = np.array(CAMERA_POSITION)
    forward = _unit(np.array(CAMERA_TARGET) - position)
    right = np.array([1.0, 0.0, 0.0])  # the camera looks along the y-z plane
    up = np.cross(forward, right)
    rays = np.outer(right, across) - np.outer(up, down) + forward[:, None]
    rays /= np.linalg.norm(rays, axis=0)
    to_wall = (WALL_DISTANCE - position[2]) / rays[2]
    with np.errstate(divide="ignore"):
        to_floor = np.where(rays[1] < 0, -position[1] / rays[1], np.inf)
    on_floor = to_floor < to_wall
    points = position[:, None] + rays * np.minimum(to_floor, to_wall)
    # Both surfaces darken towards their common edge and away from the centre.
    from_edge = np.where(on_floor, WALL_DISTANCE - points[2], points[1])
    shade = 1 - 0.22 * np.exp(-2.2 * from_edge)
    shade *= 1 - 0.035 * (points[0] ** 2)
    return {
        "rays": rays.astype(np.float32),
        "on_floor": on_floor,
        "floor_samples": np.flatnonzero(on_floor),
        "floor_points": points[:, on_floor].astype(np.float32),
        "shade": shade.astype(np.float32),
    }


class _Scene:
    """Scenes with one shape, drawn together.

    All geometry happens in the object's own coordinates: turned by the azimuth
    and divided by the size. There the lamp stands still.

    Args:
        name: the shape.
        room: what `_room` returns.
        rows: int array, the scenes' rows in the pictures to draw on.
        size: float array, one per row.
        azimuth: float array in degrees, one per row.
    """

    def __init__(self, name, room, rows, size, azimuth):
        self.distance, self.centre, self.radius = _GEOMETRY[name]
        self.casts_on_itself = name in _NOT_CONVEX
        self.room, self.rows, self.size = room, rows, size.astype(np.float32)
        angle = np.radians(azimuth).astype(np.float32)
        self.cosine, self.sine = np.cos(angle), np.sin(angle)

    def draw_shadow(self, light):
        """Darkens the floor in the object's shadow and beside its foot."""
        x, _, z = self.room["floor_points"]
        scale = (1 / self.size)[:, None]
        x, z = self._turn(x * scale, z * scale, self.cosine, self.sine)
        # Distance of the ray towards the lamp from the bounding sphere's
        # centre, and of the floor point itself.
        along = self.centre * _LAMP[1] - x * _LAMP[0] - z * _LAMP[2]
        squared = x * x + z * z + self.centre**2
        near = squared - along * along < (self.radius + 0.1) ** 2
        near |= squared < (self.radius + 0.25) ** 2
        scene, sample = np.nonzero(near)
        points = np.stack([x[near], np.zeros(len(scene), np.float32), z[near]])
        open_sky = np.clip(self.distance(*points) / 0.55, 0, 1)
        lit = self._lit(points)
        factor = (0.6 + 0.4 * open_sky) * (0.42 + 0.58 * lit)
        at = self.rows[scene], self.room["floor_samples"][sample]
        light[at] *= factor[:, None]

    def draw_object(self, light, object_colors, floor_colors):
        """Draws the object over the room."""
        scene, sample, points, rays = self._visible()
        normals = self._normals(points)
        facing = np.maximum(_dot(normals, _LAMP[:, None]), 0)
        if self.casts_on_itself:
            facing *= self._lit(points + 0.03 * normals)
        half = _LAMP[:, None] - rays
        half /= _length(*half)
        gloss = facing * np.maximum(_dot(normals, half), 0) ** 40
        sky = 0.36 + 0.16 * normals[1]
        # Light that the floor throws back, weaker with height.
        bounce = 0.16 * np.maximum(0.4 - normals[1], 0) / (1 + points[1])
        rows = self.rows[scene]
        color = object_colors[rows] * (sky + 0.66 * facing)[:, None]
        color += floor_colors[rows] * bounce[:, None]
        color += 0.3 * gloss[:, None]
        light[rows, sample] = color

    def _visible(self):
        """Finds which samples see the object, and where.

        Returns:
            Scene, sample (int arrays `(m,)`), points and rays (float arrays
            `(3, m)`, in the object's coordinates).
        """
        rays = self.room["rays"]
        # The ray's closest approach to the centre of the bounding sphere.
        offset = np.array(CAMERA_POSITION, np.float32)[:, None] / self.size
        offset[1] -= self.centre
        along = -(offset[1:2].T * rays[1] + offset[2:3].T * rays[2])
        squared = _dot(offset, offset)[:, None] - along * along
        scene, sample = np.nonzero(squared < self.radius**2)
        middle = along[scene, sample]
        half = np.sqrt(self.radius**2 - squared[scene, sample])
        cosine, sine = self.cosine[scene], self.sine[scene]
        x, y, z = rays[:, sample]
        x, z = self._turn(x, z, cosine, sine)
        rays = np.stack([x, y, z])
        x, y, z = np.array(CAMERA_POSITION, np.float32)[:, None] / self.size
        x, z = self._turn(x, z, self.cosine, self.sine)
        origins = np.stack([x, y, z])[:, scene]
        hit, distance = self._march(origins, rays, middle - half, middle + half)
        rays = rays[:, hit]
        points = origins[:, hit] + distance * rays
        return scene[hit], sample[hit], points, rays

    def _march(self, origins, rays, start, end):
        """Marches to the surface; returns the rays that hit, and how far."""
        which = np.arange(start.size)
        hits, distances = [], []
        for _ in range(_MARCH_STEPS):
            step = self.distance(*(origins + start * rays))
            start = start + step
            arrived = step < _HIT
            hits.append(which[arrived])
            distances.append(start[arrived])
            go = ~arrived & (start < end)
            which, start, end = which[go], start[go], end[go]
            origins, rays = origins[:, go], rays[:, go]
            if not which.size:
                break
        return np.concatenate(hits), np.concatenate(distances)

    def _lit(self, points):
        """Share of the lamp that points see, (m,) in [0, 1], soft-edged."""
        to_centre = self.centre * _LAMP[1] - _dot(points, _LAMP[:, None])
        end = to_centre + self.radius
        lit = np.ones(end.shape, np.float32)
        which = np.arange(end.size)
        travelled = np.full(end.shape, 0.02, np.float32)
        for _ in range(_SHADOW_STEPS):
            step = self.distance(*(points + travelled * _LAMP[:, None]))
            seen = np.clip(_PENUMBRA * step / travelled, 0, 1)
            lit[which] = np.minimum(lit[which], seen)
            travelled = travelled + np.maximum(step, 0.03)
            go = (travelled < end) & (seen > 0)
            which, points = which[go], points[:, go]
            travelled, end = travelled[go], end[go]
            if not which.size:
                break
        return lit * lit * (3 - 2 * lit)

    def _normals(self, points):
        """Unit gradient of the distance, from a tetrahedron of samples."""
        normals = np.zeros_like(points)
        for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            corner = np.array(corner, np.float32)[:, None]
            normals += corner * self.distance(*(points + 4e-3 * corner))
        return normals / np.maximum(_length(*normals), 1e-9)

    def _turn(self, x, z, cosine, sine):
        """World to object: turns back by the azimuth, about the y axis."""
        if x.ndim > 1:
            cosine, sine = cosine[:, None], sine[:, None]
        return x * cosine - z * sine, x * sine + z * cosine


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _rgb(hue, saturation, value):
    """Colours `(n, 3)` in [0, 1] of hues `(n,)`, fractions of the circle."""
    sector = np.asarray(hue, np.float32)[:, None] * 6 + np.float32([0, 4, 2])
    pure = np.clip(np.abs(sector % 6 - 3) - 1, 0, 1)
    return np.float32(value) * (1 - saturation + saturation * pure)

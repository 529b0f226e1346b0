"""Where a pixel lies on flat ground: camera model and mounting in, metres and their covariance out.

The ground frame has its origin on the ground, x forward, y to the left and z up (ROS REP 103); the camera looks along z
of its optical frame, with x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import yaml

from ..errors import PebalError

OPTICAL_TO_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotates the optical frame of a level camera into the ground frame."""

LOWEST_SLOPE = 1e-3
"""A ray that falls by less than this per metre meets the ground more than a thousand heights away: no position."""

FISHEYE = ("equidistant", "fisheye")
"""Names of Kannala and Brandt's distortion model in ROS and elsewhere; other models are polynomial."""


@dataclass(frozen=True)
class CameraModel:
    """A pinhole camera with distortion, as in sensor_msgs/CameraInfo.

    Raises:
        PebalError: a focal length that is not positive, or values that are not finite.
    """

    width: int
    height: int
    matrix: np.ndarray
    """3×3, in pixels: focal lengths and principal point (``K``)."""
    distortion: np.ndarray
    """Coefficients in OpenCV's order (``D``); empty: none."""
    distortion_model: str = "plumb_bob"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.distortion).all()):
            raise PebalError("The calibration of the camera holds values that are not finite.")
        fx, fy = self.matrix[0, 0], self.matrix[1, 1]
        if fx <= 0 or fy <= 0:
            raise PebalError(
                f"The calibration of the camera has the focal lengths {fx:g} and {fy:g}; they must be positive. Is the "
                "camera calibrated?"
            )

    @classmethod
    def read(cls, path: Path) -> CameraModel:
        """Read a calibration as ROS's camera_calibration writes it.

        Raises:
            PebalError: no such file, or it lacks a value.
        """
        try:
            content = yaml.safe_load(path.expanduser().read_text())
            return cls(
                int(content["image_width"]),
                int(content["image_height"]),
                np.array(content["camera_matrix"]["data"], np.float64).reshape(3, 3),
                np.array(content["distortion_coefficients"]["data"], np.float64),
                str(content.get("distortion_model", "plumb_bob")),
            )
        except OSError as error:
            raise PebalError(f"The calibration {path} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise PebalError(
                f"{path} is no calibration as ROS writes it, with image_width, image_height, camera_matrix and "
                f"distortion_coefficients ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})."
            ) from error

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Directions of pixels in the optical frame.

        Args:
            pixels: N×2, x and y.

        Returns:
            N×3 with z = 1.
        """
        points = np.asarray(pixels, np.float64).reshape(-1, 1, 2)
        if len(points) == 0:
            return np.empty((0, 3))
        if self.distortion_model in FISHEYE:
            flat = cv2.fisheye.undistortPoints(points, self.matrix, self.distortion[:4].reshape(4, 1))
        else:
            flat = cv2.undistortPoints(points, self.matrix, self.distortion)
        return np.concatenate([flat[:, 0, :], np.ones((len(points), 1))], axis=1)


@dataclass(frozen=True)
class Mounting:
    """How a camera is mounted, and how well that is known.

    Raises:
        PebalError: a height that is not positive, or an angle of 90° or more.
    """

    height: float
    """Metres above the ground."""
    pitch: float = 0.0
    """Degrees; positive when the camera looks down."""
    roll: float = 0.0
    """Degrees; positive when the camera is turned clockwise, seen from behind it."""
    pitch_std: float = 0.5
    """Standard deviation of the pitch in degrees, with what braking and slopes add."""
    roll_std: float = 0.5
    """Standard deviation of the roll in degrees."""
    height_std: float = 0.02
    """Standard deviation of the height in metres."""
    pixel_std: float = 1.0
    """Standard deviation of a contact point in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.height < 100:
            raise PebalError(f"The height of the camera must lie between 0 and 100 m; it is {self.height:g}.")
        for name, angle in (("pitch", self.pitch), ("roll", self.roll)):
            if not -90 < angle < 90:
                raise PebalError(f"The {name} of the camera must lie between -90 and 90 degrees; it is {angle:g}.")
        for name in ("pitch_std", "roll_std", "height_std", "pixel_std"):
            if not 0 <= getattr(self, name) < 90:
                raise PebalError(f"{name} of the camera must lie between 0 and 90; it is {getattr(self, name):g}.")

    @property
    def rotation(self) -> np.ndarray:
        """3×3: from the optical frame into the ground frame."""
        return _about_y(math.radians(self.pitch)) @ _about_x(math.radians(self.roll)) @ OPTICAL_TO_FORWARD


@dataclass(frozen=True)
class GroundPlane:
    """Flat ground as a camera sees it.

    Examples:
        >>> camera = CameraModel(1280, 720, np.array([[800, 0, 640], [0, 800, 360], [0, 0, 1.0]]), np.zeros(5))
        >>> ground = GroundPlane.from_mounting(camera, Mounting(height=1.5, pitch=0))
        >>> ground.project(np.array([[640, 480]])).round(3)  # 120 px below the horizon: 800 · 1.5 / 120 m ahead
        array([[10.,  0.]])

    Raises:
        PebalError: the camera sees no ground, because the horizon lies below the image.
    """

    camera: CameraModel
    rotation: np.ndarray
    """3×3: from the optical frame into the ground frame."""
    origin: np.ndarray
    """3: the camera's position in the ground frame, in metres."""
    uncertainty: Mounting
    """Only its standard deviations are used."""

    def __post_init__(self) -> None:
        if not self.origin[2] > 0:
            raise PebalError(f"The camera lies {self.origin[2]:g} m above the ground; it must lie above it.")
        width, height = self.camera.width, self.camera.height
        corners = np.array([[0, height - 1], [width / 2, height - 1], [width - 1, height - 1]])
        if np.isnan(self.project(corners)).all():
            raise PebalError(
                "The camera sees no ground: by its mounting the horizon lies below the image. Correct its pitch: "
                "it is positive when the camera looks down."
            )

    @classmethod
    def from_mounting(cls, camera: CameraModel, mounting: Mounting) -> GroundPlane:
        """The ground below a camera; the origin lies straight below it."""
        return cls(camera, mounting.rotation, np.array([0.0, 0.0, mounting.height]), mounting)

    def project(self, pixels: np.ndarray) -> np.ndarray:
        """Positions on the ground.

        Args:
            pixels: N×2, x and y.

        Returns:
            N×2, x and y in metres; NaN for what lies at the horizon or above it.
        """
        return _meet(self.camera.rays(pixels) @ self.rotation.T, self.origin)

    def covariances(self, pixels: np.ndarray) -> np.ndarray:
        """Covariances of the positions of pixels: first-order propagation, by central differences, of the deviations of
        pitch, roll, height and pixel.

        Args:
            pixels: N×2, x and y.

        Returns:
            N×2×2 in square metres; infinite where a deviation reaches the horizon, because the distance then has no
            upper bound.
        """
        sigma = self.uncertainty
        moved = (pixels[:, None] + sigma.pixel_std * _NEIGHBOURS).reshape(-1, 2)
        rays = (self.camera.rays(moved) @ self.rotation.T).reshape(len(pixels), len(_NEIGHBOURS), 3)
        ahead, shifted = rays[:, :1], rays[:, 1:]
        turn = self.rotation @ OPTICAL_TO_FORWARD.T
        angles = np.radians([sigma.pitch_std, sigma.roll_std])
        turns = [turn @ about(sign * angle) @ turn.T for about, angle in zip(_ABOUT, angles) for sign in (1, -1)]
        turned = np.einsum("kij,nj->nki", np.stack(turns), ahead[:, 0])
        directions = np.concatenate([turned, ahead, ahead, shifted], axis=1)  # pairs: one step up, one step down
        heights = np.full(directions.shape[1], self.origin[2])
        heights[len(turns) : len(turns) + 2] += sigma.height_std, -sigma.height_std
        points = _meet(directions, self.origin, heights)
        jacobian = (points[:, 0::2] - points[:, 1::2]) / 2
        covariances = np.einsum("nki,nkj->nij", jacobian, jacobian)
        covariances[np.isnan(jacobian).any(axis=(1, 2))] = np.inf
        return covariances

    @cached_property
    def foot(self) -> np.ndarray:
        """2: the point on the ground straight below the camera."""
        return self.origin[:2]


_NEIGHBOURS = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)


def _meet(directions: np.ndarray, origin: np.ndarray, heights: np.ndarray | float | None = None) -> np.ndarray:
    """Where rays …×3 from an origin meet the ground, …×2; NaN where they do not fall.

    Args:
        heights: above the ground, in place of the origin's.
    """
    horizontal, falling = directions[..., :2], -directions[..., 2]
    falling = np.where(falling > LOWEST_SLOPE * np.linalg.norm(horizontal, axis=-1), falling, np.nan)
    steps = (origin[2] if heights is None else heights) / falling
    return origin[:2] + steps[..., None] * horizontal


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    """A positive angle turns forward (x) down."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


_ABOUT = (_about_y, _about_x)

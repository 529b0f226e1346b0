"""Computes the position of a pixel on flat ground, with its covariance, from a camera model and a mounting.

The ground frame has its origin on the ground, x forward, y to the left and z up (ROS REP 103). The optical frame has z
along the viewing direction, x to the right and y down.
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
from ..files import user_path

OPTICAL_TO_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation from the optical frame of a level camera to the ground frame."""

LOWEST_SLOPE = 1e-3
"""A ray that falls by less than this per metre has no position, as it meets the ground over a thousand heights away."""

FISHEYE = ("equidistant", "fisheye")
"""Names of the Kannala-Brandt distortion model; all other models are treated as polynomial."""


@dataclass(frozen=True)
class CameraModel:
    """A pinhole camera with distortion, as in sensor_msgs/CameraInfo.

    Raises:
        PebalError: a focal length is not positive, or a value is not finite.
    """

    width: int
    height: int
    matrix: np.ndarray
    """3×3, focal lengths and principal point in pixels (``K``)."""
    distortion: np.ndarray
    """Distortion coefficients in OpenCV's order (``D``); empty if there is no distortion."""
    distortion_model: str = "plumb_bob"
    """Name of the distortion model in ROS."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.distortion).all()):
            raise PebalError("The calibration of the camera contains values that are not finite.")
        fx, fy = self.matrix[0, 0], self.matrix[1, 1]
        if fx <= 0 or fy <= 0:
            raise PebalError(
                f"The calibration of the camera has the focal lengths {fx:g} and {fy:g}; they must be positive. Is the "
                "camera calibrated?"
            )

    @classmethod
    def read(cls, path: Path) -> CameraModel:
        """Read a calibration file in the format of ROS's camera_calibration.

        Raises:
            PebalError: the file cannot be read, or a value is missing or invalid.
        """
        try:
            content = yaml.safe_load(user_path(path).read_text())
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
                f"{path} is not a calibration file as ROS writes it, with image_width, image_height, camera_matrix "
                f"and distortion_coefficients ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})."
            ) from error

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the directions of pixels in the optical frame.

        Args:
            pixels: N×2, x and y.

        Returns:
            N×3 with z = 1.

        Examples:
            >>> camera = CameraModel(1280, 720, np.array([[800, 0, 640], [0, 800, 360], [0, 0, 1.0]]), np.zeros(5))
            >>> camera.rays(np.array([[640, 360], [1040, 360]])).tolist()
            [[0.0, 0.0, 1.0], [0.5, 0.0, 1.0]]
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
    """The mounting of a camera and its uncertainty.

    Raises:
        PebalError: the height is not positive, an angle is 90° or more, or another value is out of range.

    Examples:
        >>> Mounting(height=1.5, pitch=30).rotation[:, 2].round(3).tolist()  # viewing direction in the ground frame
        [0.866, 0.0, -0.5]
    """

    height: float
    """Metres above the ground."""
    pitch: float = 0.0
    """Degrees; positive when the camera looks down."""
    roll: float = 0.0
    """Degrees; positive when the camera is turned clockwise, seen from behind it."""
    pitch_std: float = 0.5
    """Standard deviation of the pitch in degrees, including the effects of braking and slopes."""
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
        """3×3 rotation from the optical frame to the ground frame."""
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
        PebalError: the camera is not above the ground, or sees no ground because the horizon is below the image.
    """

    camera: CameraModel
    rotation: np.ndarray
    """3×3 rotation from the optical frame to the ground frame."""
    origin: np.ndarray
    """3 values, the camera's position in the ground frame in metres."""
    uncertainty: Mounting
    """A mounting, of which only the standard deviations are used."""

    def __post_init__(self) -> None:
        if not self.origin[2] > 0:
            raise PebalError(f"The height of the camera above the ground is {self.origin[2]:g} m; it must be positive.")
        width, height = self.camera.width, self.camera.height
        corners = np.array([[0, height - 1], [width / 2, height - 1], [width - 1, height - 1]])
        if np.isnan(self.project(corners)).all():
            raise PebalError(
                "The camera sees no ground, because with its mounting the horizon lies below the image. Correct its "
                "pitch, which is positive when the camera looks down."
            )

    @classmethod
    def from_mounting(cls, camera: CameraModel, mounting: Mounting) -> GroundPlane:
        """The ground below a camera, with the origin vertically below the camera."""
        return cls(camera, mounting.rotation, np.array([0.0, 0.0, mounting.height]), mounting)

    def project(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the positions of pixels on the ground.

        Args:
            pixels: N×2, x and y.

        Returns:
            N×2, x and y in metres; NaN for pixels at or above the horizon.
        """
        return _intersect_ground(self.camera.rays(pixels) @ self.rotation.T, self.origin)

    def covariances(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the covariances of the positions of pixels.

        The standard deviations of pitch, roll, height and pixel are propagated to first order by central differences.

        Args:
            pixels: N×2, x and y.

        Returns:
            N×2×2 in square metres; infinite if a deviation reaches the horizon, because the distance then has no upper
            bound.
        """
        sigma = self.uncertainty
        moved = (pixels[:, None] + sigma.pixel_std * _NEIGHBOURS).reshape(-1, 2)
        rays = (self.camera.rays(moved) @ self.rotation.T).reshape(len(pixels), len(_NEIGHBOURS), 3)
        ahead, shifted = rays[:, :1], rays[:, 1:]
        turned = np.einsum("kij,nj->nki", self._turns, ahead[:, 0])
        directions = np.concatenate([turned, ahead, ahead, shifted], axis=1)  # pairs of a step up and a step down
        heights = np.full(directions.shape[1], self.origin[2])
        heights[len(self._turns) : len(self._turns) + 2] += sigma.height_std, -sigma.height_std
        points = _intersect_ground(directions, self.origin, heights)
        jacobian = (points[:, 0::2] - points[:, 1::2]) / 2
        covariances = np.einsum("nki,nkj->nij", jacobian, jacobian)
        covariances[np.isnan(jacobian).any(axis=(1, 2))] = np.inf
        return covariances

    @cached_property
    def _turns(self) -> np.ndarray:
        """4×3×3, rotations by the standard deviations of pitch and roll, each a step up and a step down."""
        turn = self.rotation @ OPTICAL_TO_FORWARD.T
        angles = np.radians([self.uncertainty.pitch_std, self.uncertainty.roll_std])
        steps = [about(sign * angle) for about, angle in zip(_ABOUT, angles) for sign in (1, -1)]
        return np.stack([turn @ step @ turn.T for step in steps])

    @cached_property
    def foot(self) -> np.ndarray:
        """2 values, the point on the ground vertically below the camera."""
        return self.origin[:2]


_NEIGHBOURS = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)


def _intersect_ground(
    directions: np.ndarray, origin: np.ndarray, heights: np.ndarray | float | None = None
) -> np.ndarray:
    """Intersections (…×2) of rays (…×3) from an origin with the ground; NaN for rays that do not fall.

    Args:
        directions: the rays.
        origin: 3 values in metres.
        heights: heights above the ground in metres, in place of the origin's.
    """
    horizontal, falling = directions[..., :2], -directions[..., 2]
    falling = np.where(falling > LOWEST_SLOPE * np.linalg.norm(horizontal, axis=-1), falling, np.nan)
    steps = (origin[2] if heights is None else heights) / falling
    return origin[:2] + steps[..., None] * horizontal


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    """A positive angle rotates the forward direction (x) downwards."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


_ABOUT = (_about_y, _about_x)

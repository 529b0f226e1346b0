"""Start anomaly_node and, on request, a player for footage and rviz2.

ros2 launch pebal_ros anomaly.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info
ros2 launch pebal_ros anomaly.launch.py source:=drive.mp4 rviz:=true
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory, get_packages_with_prefixes
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

CONFIG = Path(get_package_share_directory("pebal_ros")) / "config"

ARGUMENTS = {
    "cameras": ("", "Names of several cameras, separated by commas; empty: one camera without a name."),
    "image": ("image", "Image topic of the camera; with several cameras, below the name of each."),
    "camera_info": ("camera_info", "CameraInfo topic of the camera; with several cameras, below the name of each."),
    "namespace": ("", "Namespace of the node and its outputs, such as front."),
    "model": ("", "Model file or name of a shipped model; empty: as in params_file."),
    "engine": ("", "torch, onnxruntime or auto; empty: as in params_file."),
    "device": ("", "cpu, cuda, cuda:N, tensorrt or auto; empty: as in params_file."),
    "params_file": (str(CONFIG / "anomaly.yaml"), "File with the parameters of anomaly_node."),
    "source": ("", "Video, recording, image folder, image or webcam index to play as every camera; empty: no player."),
    "topic": ("", "Image topic to play from the recording; empty: its only image topic."),
    "loop": ("true", "Whether the player starts again at the end; false: the launch ends with the footage."),
    "rviz": ("false", "Whether to show the (first) camera, overlay, score and labels in rviz2."),
}
CHOICES = {name: ["true", "false", "True", "False"] for name in ("loop", "rviz")}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=CHOICES.get(name))
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the actions for the values of the launch arguments."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    # launch_ros would only warn, and the node would run with other parameters than the user expects.
    if not Path(given["params_file"]).is_file():
        raise FileNotFoundError(f"The parameter file '{given['params_file']}' does not exist. Correct params_file.")

    if given["rviz"].lower() == "true" and "rviz2" not in get_packages_with_prefixes():
        line = f"sudo apt install ros-{os.environ.get('ROS_DISTRO', 'DISTRO')}-rviz2"
        raise FileNotFoundError(
            f"rviz:=true needs rviz2, which is not installed. Install it with {line}, or leave rviz out."
        )

    # Images need larger shared memory than Fast DDS has by default. Up to Jazzy, Fast DDS knows only the old name of
    # the variable. Later versions accept both names, and complain if both name the same file.
    old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    profile = "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE"
    actions: list[LaunchDescriptionEntity] = []
    if profile not in os.environ:
        actions.append(SetEnvironmentVariable(profile, str(CONFIG / "fastdds.xml")))
    cameras = [name.strip() for name in given["cameras"].split(",")]
    prefixes = [f"{name}/" if name else "" for name in cameras]
    topics = [(prefix + topic, prefix + given[topic]) for prefix in prefixes for topic in ("image", "camera_info")]
    # Without the type, launch would read "0" as a number.
    chosen = {
        name: ParameterValue(given[name], value_type=str) for name in ("model", "engine", "device") if given[name]
    }
    actions.append(
        Node(
            package="pebal_ros",
            executable="anomaly_node",
            namespace=given["namespace"],
            parameters=[given["params_file"], chosen, {"cameras": cameras} if given["cameras"] else {}],
            remappings=topics,
            output="screen",
            on_exit=Shutdown(reason="anomaly_node ended"),
        )
    )
    if given["source"]:
        footage = {
            "source": ParameterValue(given["source"], value_type=str),
            "topic": ParameterValue(given["topic"], value_type=str),
            "loop": given["loop"].lower() == "true",
            "wait_for_subscribers": 1,
        }
        actions += [
            Node(
                package="pebal_ros",
                executable="camera_player",
                name="_".join([*prefix.split("/")[:-1], "camera_player"]),
                namespace=given["namespace"],
                parameters=[{**footage, "frame_id": name or "camera"}],
                remappings=[(topic, prefix + given[topic]) for topic in ("image", "camera_info")],
                output="screen",
                on_exit=Shutdown(reason="the footage ended"),
            )
            for name, prefix in zip(cameras, prefixes)
        ]
    if given["rviz"].lower() == "true":
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                namespace="/".join(filter(None, [given["namespace"], cameras[0]])),
                arguments=["-d", str(CONFIG / "anomaly.rviz")],
                remappings=[("image", given["image"])],
            )
        )
    return actions

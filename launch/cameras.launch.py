"""Start one anomaly_node for a rig of cameras: one model in memory, the frames that wait are one batch.

ros2 launch pebal_ros cameras.launch.py cameras:=front,left,right image:=image_raw
ros2 launch pebal_ros cameras.launch.py cameras:=front,left source:=drive.mp4

With the first line the node subscribes to front/image_raw, left/image_raw, right/image_raw and publishes front/labels …
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

CONFIG = Path(get_package_share_directory("pebal_ros")) / "config"

ARGUMENTS = {
    "cameras": ("front,left,right", "Names of the cameras, with commas between them."),
    "image": ("image", "Image topic of every camera, below its name; with transport:=compressed without /compressed."),
    "camera_info": ("camera_info", "Calibration topic of every camera, below its name."),
    "namespace": ("", "Namespace of the node and its cameras."),
    "model": ("", "Model file or shipped model; empty: as the parameter file says."),
    "engine": ("", "What runs the network; empty: as the parameter file says."),
    "device": ("", "cpu, cuda, cuda:N or auto; empty: as the parameter file says."),
    "transport": ("", "raw or compressed; empty: as the parameter file says."),
    "params_file": (str(CONFIG / "anomaly.yaml"), "Parameters of anomaly_node."),
    "source": ("", "Video, image folder or image to play as every camera, to try a rig on a desk; empty: none."),
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The actions, once the arguments have values."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    cameras = [name.strip() for name in given["cameras"].split(",")]

    # As in anomaly.launch.py: images need larger shared memory than Fast DDS has by default.
    old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    profile = "FASTRTPS_DEFAULT_PROFILES_FILE" if old else "FASTDDS_DEFAULT_PROFILES_FILE"
    actions: list[LaunchDescriptionEntity] = []
    if profile not in os.environ:
        actions.append(SetEnvironmentVariable(profile, str(CONFIG / "fastdds.xml")))
    chosen = {
        name: ParameterValue(given[name], value_type=str)
        for name in ("model", "engine", "device", "transport")
        if given[name]
    }
    actions.append(
        Node(
            package="pebal_ros",
            executable="anomaly_node",
            namespace=given["namespace"],
            parameters=[given["params_file"], {"cameras": cameras, **chosen}],
            remappings=[
                (f"{camera}/{topic}", f"{camera}/{given[topic]}")
                for camera in cameras
                for topic in ("image", "camera_info")
            ],
            output="screen",
            on_exit=Shutdown(reason="anomaly_node ended"),
        )
    )
    if given["source"]:
        footage = {"source": ParameterValue(given["source"], value_type=str), "loop": True, "wait_for_subscribers": 1}
        for camera in cameras:
            actions.append(
                Node(
                    package="pebal_ros",
                    executable="camera_player",
                    name=f"{camera.replace('/', '_')}_player",
                    namespace=given["namespace"],
                    parameters=[{**footage, "frame_id": camera}],
                    remappings=[(topic, f"{camera}/{given[topic]}") for topic in ("image", "camera_info")],
                    output="screen",
                )
            )
    return actions

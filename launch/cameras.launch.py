"""Start one anomaly_node for several cameras. One model is in memory, and waiting frames are processed as one batch.

ros2 launch pebal_ros cameras.launch.py cameras:=front,left,right image:=image_raw
ros2 launch pebal_ros cameras.launch.py cameras:=front,left source:=drive.mp4

With the first command, the node subscribes to front/image_raw, left/image_raw and right/image_raw, and publishes
front/labels and so on. The other arguments are the same as for anomaly.launch.py.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

SINGLE = Path(__file__).with_name("anomaly.launch.py")


def generate_launch_description() -> LaunchDescription:
    chosen = {"cameras": LaunchConfiguration("cameras")}
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "cameras", default_value="front,left,right", description="Camera names, separated by commas."
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SINGLE)), launch_arguments=chosen.items()),
        ]
    )

"""Start one anomaly_node for a rig of cameras: one model in memory, the frames that wait are one batch.

ros2 launch pebal_ros cameras.launch.py cameras:=front,left,right image:=image_raw
ros2 launch pebal_ros cameras.launch.py cameras:=front,left source:=drive.mp4

With the first line the node subscribes to front/image_raw, left/image_raw, right/image_raw and publishes front/labels …
The other arguments are those of anomaly.launch.py.
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
                "cameras", default_value="front,left,right", description="Names, with commas between."
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(SINGLE)), launch_arguments=chosen.items()),
        ]
    )

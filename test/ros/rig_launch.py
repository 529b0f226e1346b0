"""launch/cameras.launch.py under launch_testing: started by `test_launch.py`, or from the repository's root with

python -m launch_testing.launch_test test/ros/rig_launch.py model:=MODEL source:=PICTURE
"""

from __future__ import annotations

import unittest
from pathlib import Path

import launch_testing
from ament_index_python.packages import get_package_share_directory
from diagnostic_msgs.msg import DiagnosticStatus
from launch.actions import IncludeLaunchDescription
from launch.launch_description import LaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_testing.actions import ReadyToTest

from test.ros.harness import STARTUP, Client, frame_counts

CAMERAS = ("front", "left")


def generate_test_description() -> LaunchDescription:
    rig = Path(get_package_share_directory("pebal_ros")) / "launch" / "cameras.launch.py"
    arguments = {"cameras": ",".join(CAMERAS), "image": "image_raw", "namespace": "launched_rig"}
    source = PythonLaunchDescriptionSource(str(rig))
    return LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments.items()), ReadyToTest()])


class TestRunning(unittest.TestCase):
    def test_every_camera_is_answered(self) -> None:
        client = Client("/launched_rig")
        inboxes = {camera: client.listen(f"{camera}/labels") for camera in CAMERAS}
        for camera, inbox in inboxes.items():
            part = f"/launched_rig/{camera}/image_raw"
            status = client.status(part, lambda s: frame_counts(s)["answered"] >= 2, STARTUP)
            self.assertNotEqual(status.level, DiagnosticStatus.ERROR, status.message)
            self.assertEqual(inbox.messages[0].header.frame_id, camera)
        client.close()


@launch_testing.post_shutdown_test()
class TestEnded(unittest.TestCase):
    def test_every_process_ended_well(self, proc_info: launch_testing.ProcInfoHandler) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)
        self.assertEqual(len(proc_info.processes()), 1 + len(CAMERAS))

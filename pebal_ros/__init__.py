"""ROS 2 nodes that use `pebal_core` to compute labels and anomaly energy from camera images."""

import os

# Limits images to 67 million pixels (8192×8192), so that a JPEG with a damaged header cannot make the decoder allocate
# gigabytes. OpenCV reads the variable when it is first imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

"""ROS 2 nodes around `pebal_core`: messages in, labels and anomaly energy out."""

import os

# Of 67 million pixels, 8192×8192: a JPEG whose damaged header claims more must not make the decoder ask for gigabytes.
# OpenCV looks at it when it is first imported.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

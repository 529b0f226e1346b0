"""ROS 2 nodes around `pebal_core`: messages in, labels and anomaly energy out."""

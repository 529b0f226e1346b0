# shellcheck shell=bash
# Source this file in bash: it makes the project's virtual environment if need be, activates it, and sets what ROS 2
# needs. The first time takes minutes and about 8 GB; afterwards it takes a second.
#
#   source scripts/environment.sh
#
# Without ROS 2, rclpy and Fast DDS come from the package registry into .venv. In a shell where an installation of
# ROS 2 is sourced that one is used, and the environment, on top of the installation's packages, is .venv-$ROS_DISTRO.

# Prints the first of the commands "$2"… that is a Python of a supported version and can import the module "$1".
pebal_find_python() {
    local module=$1 python
    shift
    for python; do
        if "$python" -c "import sys, $module; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

pebal_environment() {
    local root python venv options=()
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return 1
    # The Python under the environment is wanted, not the environment's own.
    if [[ ${VIRTUAL_ENV:-} == "$root/.venv"* ]]; then
        PATH=${PATH//"$VIRTUAL_ENV/bin:"/}
    fi
    if [[ -n ${ROS_DISTRO:-} ]] && python=$(pebal_find_python rclpy python3 /usr/bin/python3); then
        venv=$root/.venv-$ROS_DISTRO
        options=(--ros)
    elif python=$(pebal_find_python sys python3 python3.12 python3.11 python3.10); then
        venv=$root/.venv
    else
        echo "pebal: Python 3.10, 3.11 or 3.12 is needed and none is on the PATH; install one (and its venv module)." >&2
        return 1
    fi
    "$python" "$root/scripts/install.py" "$venv" "${options[@]}" || return 1

    # shellcheck source=/dev/null
    source "$venv/bin/activate" || return 1
    if ((${#options[@]})); then
        export AMENT_PREFIX_PATH=$venv:${AMENT_PREFIX_PATH//"$venv:"/}
    else
        export AMENT_PREFIX_PATH=$venv RMW_IMPLEMENTATION=rmw_fastrtps_cpp
    fi
    # Up to Jazzy, Fast DDS knows only the old name; later ones take both, and complain when both name one file.
    case ${ROS_DISTRO:-} in
        humble | iron | jazzy) export FASTRTPS_DEFAULT_PROFILES_FILE=$root/config/fastdds.xml ;;
        *) export FASTDDS_DEFAULT_PROFILES_FILE=$root/config/fastdds.xml ;;
    esac
}

pebal_environment

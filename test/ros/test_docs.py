"""The pages and viewer layouts that name what the node offers are compared with the node."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import yaml

from pebal_core.outputs import OUTPUTS
from pebal_ros import findings
from pebal_ros.findings import Code
from pebal_ros.parameters import documentation

from .harness import REPOSITORY, Rig, frame_counts, wait_until

TOPICS = {*OUTPUTS, *(f"{name}/compressed" for name, output in OUTPUTS.items() if output.compress)}


def page(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text()


def test_the_page_of_parameters_is_that_of_the_table() -> None:
    assert page("parameters.md") == documentation(), "python -m pebal_ros.parameters > docs/parameters.md"


def test_every_finding_is_explained_and_no_other() -> None:
    source = Path(findings.__file__).read_text()
    assert [code.name for code in Code if f"Code.{code.name}," not in source] == [], "each is found somewhere"
    section = page("operations.md").partition("### Camera status")[2].partition("### Model status")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (?:OK|WARN|ERROR) \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(code.value for code in Code)


def test_every_count_is_explained(rig: Rig) -> None:
    status = rig.client.status("/rig/image", lambda _: True, 180)
    text = page("operations.md")
    for name in frame_counts(status):
        assert f"`frames {name}`" in text, name


def test_the_policy_of_sros_allows_what_the_node_does_and_no_more(rig: Rig) -> None:
    (xml,) = re.findall(r"```xml\n(.*?)```", page("security.md"), re.DOTALL)
    profile = ElementTree.fromstring(xml).find(".//profile")
    assert profile is not None

    def allowed(kind: str) -> set[str]:
        names = {item.text or "" for item in profile.findall(kind)}
        absolute = {name.replace("~/", "anomaly_node/").replace("/camera/camera_info", "camera_info") for name in names}
        return {name.replace("/camera/image_raw", "image") for name in absolute}

    def used(names_and_types: list[tuple[str, list[str]]]) -> set[str]:
        return {name.removeprefix("/rig/") for name, _ in names_and_types}

    node, who = rig.client.node, ("anomaly_node", "/rig")
    wait_until(lambda: rig.client.statuses.get("/rig/image"))  # it is active
    published = used(node.get_publisher_names_and_types_by_node(*who))
    heard = used(node.get_subscriber_names_and_types_by_node(*who))
    served = used(node.get_service_names_and_types_by_node(*who))
    topics = allowed("topics[@publish='ALLOW']/topic")
    assert published <= topics and topics - published <= {"label_info", "mask_info", "objects"}, (
        "vision_msgs is not everywhere"
    )
    assert heard | {"/clock"} == allowed("topics[@subscribe='ALLOW']/topic")
    services = allowed("services/service")
    assert served <= services and services - served <= {"anomaly_node/get_type_description"}, "from Jazzy on"


def test_viewers_show_what_there_is() -> None:
    layout = json.loads((REPOSITORY / "config" / "foxglove.json").read_text())
    panels = layout["configById"]
    shown = {panel["imageMode"]["imageTopic"].lstrip("/") for name, panel in panels.items() if name[:6] == "Image!"}
    assert shown and shown <= TOPICS

    def placed(tree: dict[str, object] | str) -> list[str]:
        return [tree] if isinstance(tree, str) else [*placed(tree["first"]), *placed(tree["second"])]  # type: ignore[arg-type]

    assert sorted(placed(layout["layout"])) == sorted(panels)
    displays = yaml.safe_load((REPOSITORY / "config" / "anomaly.rviz").read_text())["Visualization Manager"]["Displays"]
    assert {display["Topic"]["Value"] for display in displays} - {"image"} <= TOPICS
